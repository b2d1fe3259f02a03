from mupscale_cli.cli.main import main

main()
