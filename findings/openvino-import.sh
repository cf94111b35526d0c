#!/usr/bin/env bash
# `import openvino` and nothing else: what it writes into an empty home folder, and whose address it asks for.
#
# Guessed before: nothing; its telemetry belongs to the conversion tool (`ovc`), which asks first.
# Came out (openvino 2026.4.1, openvino-telemetry 2025.2.0): the import loads that tool. It writes ~/intel/openvino_ga_cid (a
# random id) and ~/intel/stats, and asks for the address of www.google-analytics.com, in a child process. Nobody is asked.
# With sys.modules["openvino_telemetry"] = None before the import it does neither, and a graph runs as before.
# Here every look-up of an address is written down and fails, so that nothing is sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
cat > "$folder/watched.py" <<'PY'
import os, socket, sys
from pathlib import Path

home = Path(os.environ["HOME"])


def look_up(host, *_, **__):
    (home / f"asked for {host}").touch()
    raise OSError("no network in this script")


socket.getaddrinfo = look_up
if sys.argv[1] == "off":
    sys.modules["openvino_telemetry"] = None
import numpy as np
import openvino as ov

x = ov.opset13.parameter([2], ov.Type.f32)
run = ov.Core().compile_model(ov.Model([ov.opset13.relu(x)], [x]), "CPU")
assert run(np.array([-1, 3], np.float32))[0].tolist() == [0, 3]
PY
for telemetry in on off; do
    mkdir "$folder/$telemetry"
    env -u CI HOME="$folder/$telemetry" "$folder/venv/bin/python" "$folder/watched.py" "$telemetry"
    (cd "$folder/$telemetry" && find . -type f | sort | tee ../"$telemetry.found" | sed "s/^/telemetry $telemetry: /")
done
diff - "$folder/on.found" <<'EXPECTED'
./asked for www.google-analytics.com
./intel/openvino_ga_cid
./intel/stats
EXPECTED
test ! -s "$folder/off.found"
