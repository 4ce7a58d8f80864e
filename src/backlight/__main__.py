"""``python -m backlight`` is the command line."""

from backlight.cli.main import process

if __name__ == "__main__":
    process()
