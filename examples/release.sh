#!/bin/sh
# Make a family of sizes and show what would be published: sh release.sh FAMILY.yaml ORG
# Every command ends with an exit code that is not 0 if something is wrong; the script stops there.
set -eu
family=$1 org=$2

mupscale run "$family" --dry-run      # disk, memory and every step; nothing is written
mupscale run "$family"                # makes what does not exist yet, verified
for wide in "$(dirname "$family")"/family/*/; do
  mupscale push "$wide" "$org/$(basename "$wide")" --dry-run   # without --dry-run: publish
done
