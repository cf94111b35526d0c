"""Folders that are not what they seem: one place in two mounts, as two hosts have it. FUSE, and the programs themselves."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

KEY = "S3RVER"  # s3rver takes no other; moto takes any


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def lacking(*programs):
    """What is missing here, in words; "" if nothing is."""
    absent = [name for name in programs if shutil.which(name) is None and not Path(name).exists()]
    return f"not here: {', '.join(absent)}" if absent else ""


def until(holds, what):
    """Wait for `holds()`."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.05)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def moto():
    """A server of S3 in a process of its own: a program that waits for its own mount cannot serve it. Its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port), "moto")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def s3rver(folder):
    """npm's s3rver with an empty bucket; its address."""
    port = free_port()
    command = [os.environ.get("BIRD_S3RVER", "s3rver"), "-s", "-d", folder, "-a", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen([*command, "--configure-bucket", "bucket"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(port), "s3rver")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def two_mounts(kind, folder, endpoint, bucket):
    """One place, mounted twice by sshfs, s3fs or rclone."""
    mounts = [folder / "one", folder / "two"]
    with contextlib.ExitStack() as stack:
        if kind == "sshfs":
            port = stack.enter_context(sshd(folder))
        for number, mount in enumerate(mounts):
            mount.mkdir()
            command = {
                "sshfs": lambda m=mount: sshfs(folder, m, port),
                "s3fs": lambda m=mount: s3fs(folder, m, endpoint, bucket),
                "rclone": lambda m=mount, n=number: rclone(folder, m, endpoint, bucket, n),
            }[kind]()
            environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            quiet = {
                "stdout": subprocess.DEVNULL,
                "stderr": subprocess.DEVNULL,
            }  # what stays behind holds no pipe of ours
            subprocess.run(command, check=True, env=environment, timeout=60, **quiet)
            stack.callback(subprocess.run, ["umount", "--lazy", mount], check=True)
            until(lambda m=mount: os.path.ismount(m), kind)
        yield mounts


@contextlib.contextmanager
def sshd(folder):
    """A server on this machine that the key folder/user opens; its port."""
    port = free_port()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {"HostKey": folder / "host", "AuthorizedKeysFile": folder / "user.pub", "StrictModes": "no"}
    settings |= {"Port": port, "ListenAddress": "127.0.0.1", "PidFile": "none", "Subsystem": "sftp internal-sftp"}
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", folder / "sshd_config"])
    try:
        until(lambda: answers(port), "sshd")
        yield port
    finally:
        process.terminate()
        process.wait()


def sshfs(folder, mount, port):
    (folder / "there").mkdir(exist_ok=True)
    known = "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
    return ["sshfs", "-o", f"port={port},IdentityFile={folder}/user,{known}", f"127.0.0.1:{folder}/there", mount]


def s3fs(folder, mount, endpoint, bucket):
    (folder / "password").write_text(f"{KEY}:{KEY}")
    (folder / "password").chmod(0o600)
    options = f"passwd_file={folder}/password,url={endpoint},use_path_request_style,sigv4"
    return ["s3fs", bucket, mount, "-o", options]


def rclone(folder, mount, endpoint, bucket, number):
    (folder / "rclone.conf").write_text(
        f"[it]\ntype = s3\nprovider = Other\naccess_key_id = {KEY}\nsecret_access_key = {KEY}\n"
        f"endpoint = {endpoint}\nforce_path_style = true\nregion = us-east-1\n"
    )
    where = ["rclone", "--config", folder / "rclone.conf", "mount", f"it:{bucket}/here", mount, "--daemon"]
    return [*where, "--vfs-cache-mode", "writes", "--cache-dir", folder / f"cache{number}", "--dir-cache-time", "1s"]
