"""``python -m backlight`` is the command line."""

from backlight.cli.main import main

if __name__ == "__main__":
    main()
