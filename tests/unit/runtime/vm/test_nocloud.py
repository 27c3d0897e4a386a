"""The seed volume of a cloud image: what is on it, and what is refused."""

from __future__ import annotations

import email
import json
from pathlib import Path

import pytest

from runtime.command import run
from runtime.driver import Host
from runtime.errors import UsageError
from runtime.identity import Identity, Place
from runtime.vm import nocloud
from runtime.vm.nocloud import Seed

WHERE = Place("10.0.0.7", 24, "10.0.0.1", "52:54:00:00:00:07", "52:54:00:00:00:01", 1500)


def test_volume_carries_agent_identity_and_label(tmp_path: Path) -> None:
    agent = tmp_path / "agent-0123"
    agent.write_bytes(b"program")
    volume = tmp_path / "seed.img"
    nocloud.write(volume, Seed(agent), "tare-1", Identity(hostname="blue", place=WHERE))
    assert run(["blkid", "-p", "-o", "value", "-s", "LABEL", str(volume)], timeout_s=60).stdout == b"CIDATA\n"
    read = {
        name: run(["mtype", "-i", str(volume), f"::/{name}"], timeout_s=60).stdout
        for name in ("agent", "meta-data", "user-data", "network-config")
    }
    assert read["agent"] == b"program"
    assert json.loads(read["meta-data"]) == {"instance-id": "tare-1", "local-hostname": "blue"}
    (card,) = json.loads(read["network-config"])["ethernets"].values()
    assert card["addresses"] == ["10.0.0.7/24"]
    assert card["match"] == {"macaddress": WHERE.mac}
    assert list(tmp_path.glob("seed-*")) == []


def test_users_part_stands_beside_ours() -> None:
    text = "#cloud-config\nbootcmd: [echo]\n"
    parts = email.message_from_string(nocloud.user_data(Seed(Path("agent"), text))).get_payload()
    assert [part.get_content_type() for part in parts] == ["text/cloud-boothook", "text/cloud-config"]  # type: ignore[union-attr]
    assert parts[1].get_payload(decode=True).decode() == text  # type: ignore[union-attr,index]


def test_keys_and_no_network() -> None:
    assert json.loads(nocloud.meta_data("i", None, ("ssh-ed25519 AAAA me",)))["public-keys"] == ["ssh-ed25519 AAAA me"]
    assert json.loads(nocloud.network_config(None)) == {"version": 2, "ethernets": {}}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"user_data": "hello"}, "no kind"),
        ({"user_data": "#!" + "x" * (1 << 20)}, "more than"),
        ({"ssh_keys": ("x",)}, "key"),
    ],
)
def test_what_cloud_init_would_not_understand_is_refused(more: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Seed(Path("agent"), **more)  # type: ignore[arg-type]


def test_the_agent_is_compiled_anew_when_what_it_includes_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Path] = []

    def compile_static(_: Path, program: Path) -> None:
        compiled.append(program)
        program.touch()

    monkeypatch.setattr(nocloud, "compile_static", compile_static)
    monkeypatch.setattr("runtime.images.recipe.GUEST_SOURCES", tmp_path)
    host = Host(root=tmp_path / "root", run=tmp_path / "run")
    for text in ("", "", "int changed;"):
        (tmp_path / "agent.c").write_text("")
        (tmp_path / "configure.h").write_text("")
        (tmp_path / "files.h").write_text(text)
        nocloud.agent_program(host)
    assert len(compiled) == 2
