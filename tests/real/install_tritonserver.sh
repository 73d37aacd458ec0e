#!/bin/sh
# Install a real tritonserver for tests/real: the CPU build inside the nvidia-pytriton wheel, and ONNX Runtime for its
# models. That build has the python backend only.
#
#     tests/real/install_tritonserver.sh [FOLDER]      TRITONSERVER_HOME, or ~/.cache/isocenter/tritonserver
set -eu
folder=${1:-${TRITONSERVER_HOME:-$HOME/.cache/isocenter/tritonserver}}
test -x "$folder/bin/python" || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    'nvidia-pytriton==0.7.0' 'onnxruntime==1.31.1' 'numpy<2'
"$folder/bin/python" - <<'EOF'
import importlib.util
import shutil
import sys
from pathlib import Path

spec = importlib.util.find_spec("pytriton")
server = Path(spec.origin).parent / "tritonserver"
version = f"{sys.version_info.major}.{sys.version_info.minor}"
stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
shutil.copy2(stub, server / "backends" / "python")
print(f"tritonserver is installed in {sys.prefix}")
EOF
