#!/bin/sh
# Install nnU-Net 2 for tests/real, with the torch that it runs on: about 6 GB.
#
#     tests/real/install_nnunet.sh [FOLDER]      NNUNET_HOME, or ~/.cache/isocenter/nnunet
set -eu
folder=${1:-${NNUNET_HOME:-$HOME/.cache/isocenter/nnunet}}
test -x "$folder/bin/python" || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r "$(dirname "$0")/nnunet-requirements.txt"
echo "nnU-Net is installed in $folder"
