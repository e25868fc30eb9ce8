"""`python -m streamlearn`."""

from streamlearn.cli import main

if __name__ == "__main__":
    main()
