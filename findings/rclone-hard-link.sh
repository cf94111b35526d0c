#!/usr/bin/env bash
# rclone mount: what a hard link is answered with. Needs FUSE and root, and Debian's package manager for the package.
#
# Guessed before: EPERM or ENOTSUP, as s3fs and vfat answer, which programs take for "no hard links".
# Came out (rclone 1.60.1, Debian 12, a mount of a plain folder with --vfs-cache-mode writes): EIO, as a failing disk has. A
# symbolic link is answered so, too. Rename, fsync of a folder, flock and memory maps work.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount "$folder/mount" 2>/dev/null || true; sleep 1; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq rclone=1.60.1+dfsg-2+b5 fuse3=3.14.0-4 libfuse3-3=3.14.0-4
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH="$folder/root/lib/x86_64-linux-gnu:$folder/root/usr/lib/x86_64-linux-gnu" PATH="$folder/root/bin:$PATH"
mkdir there mount
"$folder/root/usr/bin/rclone" version | head -1
"$folder/root/usr/bin/rclone" --config /dev/null mount there mount --daemon --vfs-cache-mode writes --cache-dir cache
python3 - mount <<'PY'
import errno
import os
import sys

os.chdir(sys.argv[1])
open("a", "w").write("a")


def answer(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


found = {
    "link": answer(lambda: os.link("a", "b")),
    "symlink": answer(lambda: os.symlink("a", "c")),
    "rename": answer(lambda: os.rename("a", "d")),
    "fsync of the folder": answer(lambda: os.fsync(os.open(".", os.O_RDONLY))),
}
print(found)
assert found == {"link": "EIO", "symlink": "EIO", "rename": "done", "fsync of the folder": "done"}, found
PY
