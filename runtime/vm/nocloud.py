"""What a cloud image is told at its first boot: a NoCloud seed volume for cloud-init, which also brings our agent.

A FAT volume labelled CIDATA, written without mounts. Our part is a boothook, which no key of the user's own
cloud-config can displace: it copies the agent off the volume and starts it as a service once cloud-init has set host
name and network. Not where the image comes from (`images.cloud`). Format: cloudinit.readthedocs.io, NoCloud.
"""

from __future__ import annotations

import json
import os
import tempfile
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

from runtime.command import run
from runtime.driver import Host
from runtime.errors import UsageError
from runtime.frames import PORT_NAME
from runtime.identity import Identity
from runtime.images.recipe import GUEST_SOURCES, agent_sources, compile_static
from runtime.images.trees import fingerprint
from runtime.record import ordered_record

USER_DATA_BYTES_MAX = 1 << 20
_VOLUME_KIB = 8192  # FAT16 begins there; the file is sparse
# By its beginning, as cloud-init itself tells the kinds apart.
_KINDS = {
    "#cloud-config": "cloud-config",
    "#!": "x-shellscript",
    "#include": "x-include-url",
    "#cloud-boothook": "cloud-boothook",
}
# /run may forbid programs, and SELinux lets services run what lies in a directory of programs.
_BOOTHOOK = f"""\
#!/bin/sh
set -e
seed=$(mktemp -d)
mount -o ro LABEL=CIDATA "$seed"
mkdir -p /usr/local/sbin /run/systemd/system
cp "$seed/agent" /usr/local/sbin/tare-agent
chmod 755 /usr/local/sbin/tare-agent
umount "$seed"
rmdir "$seed"
cat > /run/systemd/system/tare-agent.service <<'END'
[Unit]
Description=Tare's guest agent
After=cloud-init.service
[Service]
ExecStart=/usr/local/sbin/tare-agent --port {PORT_NAME} --no-userland
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-900
END
systemctl daemon-reload
systemctl start --no-block tare-agent.service
"""


@ordered_record
class Seed:
    """What the user adds: `user_data` of any kind that cloud-init knows, keys for its default user. `agent` is ours."""

    agent: Path
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.user_data.encode()) > USER_DATA_BYTES_MAX:
            raise UsageError("user data", f"more than {USER_DATA_BYTES_MAX} bytes", "let it fetch the rest")
        if self.user_data and _kind(self.user_data) is None:
            raise UsageError("user data", "its first line says no kind", f"begin with one of {', '.join(_KINDS)}")
        for key in self.ssh_keys:
            if len(key.split()) < 2 or not key.isprintable():
                raise UsageError(f"ssh key {key[:20]!r}", "not one line of a public key", "use what is in id_*.pub")


def agent_program(host: Host) -> Path:
    """The guest agent as a static program, compiled when its source is new."""
    program = host.root / "cache" / f"agent-{fingerprint(*agent_sources())[:12]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = program.with_suffix(f".{os.getpid()}")
        compile_static(GUEST_SOURCES / "agent.c", new)
        new.rename(program)
    return program


def write(path: Path, seed: Seed, instance_id: str, identity: Identity | None) -> None:
    """Make the volume `path` for one instance. Raises TareError when a tool fails; `path` may be there then."""
    files = {
        "meta-data": meta_data(instance_id, identity, seed.ssh_keys),
        "user-data": user_data(seed),
        "network-config": network_config(identity),
    }
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    run(["mkfs.vfat", "-C", "-n", "CIDATA", str(path), str(_VOLUME_KIB)], timeout_s=60, env=environment)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="seed-") as scratch:
        sources = [seed.agent]
        for name, text in files.items():
            (Path(scratch) / name).write_text(text)
            sources.append(Path(scratch) / name)
        for source in sources:
            name = "agent" if source == seed.agent else source.name
            run(["mcopy", "-i", str(path), str(source), f"::/{name}"], timeout_s=60, env=environment)
    path.chmod(0o400)


def meta_data(instance_id: str, identity: Identity | None, ssh_keys: tuple[str, ...] = ()) -> str:
    """Who the instance is; JSON, which is YAML."""
    hostname = identity.hostname if identity is not None else None
    keys = {"public-keys": list(ssh_keys)} if ssh_keys else {}
    return json.dumps({"instance-id": instance_id, "local-hostname": hostname or instance_id, **keys}) + "\n"


def network_config(identity: Identity | None) -> str:
    """Its static address, version 2 of the format; without a network nothing is to be waited for or asked by DHCP."""
    ethernets = {}
    if identity is not None and (place := identity.place) is not None:
        ethernets["tare0"] = {
            "match": {"macaddress": place.mac},
            "addresses": [f"{place.address}/{place.prefix_bits}"],
            "routes": [{"to": "0.0.0.0/0", "via": place.gateway}],
            "mtu": place.mtu,
        }
    return json.dumps({"version": 2, "ethernets": ethernets}) + "\n"


def user_data(seed: Seed) -> str:
    """Our boothook and the user's own part, side by side."""
    whole = MIMEMultipart(boundary="==tare-seed==")
    whole.attach(MIMEText(_BOOTHOOK, "cloud-boothook", "utf-8"))
    if seed.user_data:
        whole.attach(MIMEText(seed.user_data, str(_kind(seed.user_data)), "utf-8"))
    return whole.as_string()


def _kind(text: str) -> str | None:
    return next((kind for start, kind in _KINDS.items() if text.startswith(start)), None)
