"""Draw images from a trained model, each into a file of its own name: the command `sdegen sample`, to copy and change.

python examples/sample_images.py --help
"""

import sys

from sdegen.app.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
