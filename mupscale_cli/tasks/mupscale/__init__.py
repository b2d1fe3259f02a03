"""The API under the name of the project: `import mupscale` gives the module `mupscale_cli`."""

import sys
from typing import TYPE_CHECKING

import mupscale_cli

if TYPE_CHECKING:
    from mupscale_cli import *

sys.modules[__name__] = mupscale_cli
