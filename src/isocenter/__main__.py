"""`python -m isocenter` is `isocenter`."""

from isocenter.cli.main import run

if __name__ == "__main__":
    run()
