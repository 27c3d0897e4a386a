"""Pulling brings exactly what a manifest names, whatever breaks on the way, and never what lies."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import TareError, UsageError
from runtime.images.auth import Credentials
from runtime.images.layout import CONFIG, DOCKER_INDEX, INDEX, MANIFEST, architecture
from runtime.images.pull import Platform, pull, pull_if_missing
from runtime.images.registry import checked_config, checked_manifest, parse_object
from runtime.images.store import Image, ImageStore
from runtime.images.transport import Access
from runtime.spec import ImageRef
from tests.unit.runtime.images.registries import FakeRegistry, serving, sha256
from tests.unit.runtime.images.trees import member

HERE = {"architecture": architecture()}
QUICK = Access(attempts=3, wait=lambda seconds: None)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with serving() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


def fetch(store: ImageStore, registry: FakeRegistry, name: str = "a/b:1", **options: Any) -> Image:
    access = options.pop("access", QUICK)
    return pull(store, ImageRef.parse(f"{registry.host}/{name}"), access, **options)


def two_layers(registry: FakeRegistry, **config: Any) -> dict[str, Any]:
    big = member("big", os.urandom(300_000))
    return registry.add_image("a/b", [[member("file", b"1")], [big, member("file", b"2")]], tag="1", **config)


def partial(store: ImageStore) -> list[str]:
    return sorted(path.name for path in (store.directory / "partial").iterdir())


@pytest.mark.parametrize("docker", [False, True])
def test_a_pulled_image_has_the_registrys_bytes(store: ImageStore, registry: FakeRegistry, docker: bool) -> None:
    manifest = two_layers(registry, docker=docker)
    image = fetch(store, registry)
    assert image.digest == sha256(json.dumps(manifest).encode())
    assert image.id == manifest["config"]["digest"]
    assert [(layer.directory / "file").read_bytes() for layer in image.layers] == [b"1", b"2"]
    assert store.find(image.id[7:19]) == image
    assert partial(store) == []


def test_what_is_here_is_not_fetched_again(store: ImageStore, registry: FakeRegistry) -> None:
    manifest = two_layers(registry)
    fetch(store, registry)
    registry.requests.clear()
    fetch(store, registry)
    assert registry.asked("GET", manifest["layers"][1]["digest"]) == []


def test_two_images_share_a_layer(store: ImageStore, registry: FakeRegistry) -> None:
    base = [member("base", b"shared")]
    first = registry.add_image("one", [base, [member("x", b"1")]])
    registry.add_image("two", [base, [member("x", b"2")]])
    fetch(store, registry, "one")
    fetch(store, registry, "two")
    assert len(registry.asked("GET", first["layers"][0]["digest"])) == 1
    assert len(list((store.directory / "layers").iterdir())) == 3


@pytest.mark.parametrize("kind", [INDEX, DOCKER_INDEX])
def test_an_index_gives_this_machines_image(store: ImageStore, registry: FakeRegistry, kind: str) -> None:
    ours = registry.add_image("a/b", [[member("ours")]], tag="ours")
    theirs = registry.add_image("a/b", [[member("theirs")]], tag="theirs", architecture="s390x")
    entries = [
        {"mediaType": MANIFEST, "digest": sha256(json.dumps(image).encode()), "size": 1, "platform": platform}
        for image, platform in (
            (theirs, {"os": "linux", "architecture": "s390x"}),
            (theirs, {"os": "unknown", "architecture": "unknown"}),
            (ours, {"os": "linux", "architecture": architecture(), "variant": "v8"}),
        )
    ]
    top = registry.add_manifest("a/b", "1", {"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    image = fetch(store, registry)
    assert (image.layers[0].directory / "ours").exists()
    assert fetch(store, registry, f"a/b@{top}").digest == image.digest
    assert store.resolve(ImageRef.parse(f"{registry.host}/a/b:1@{top}")).digest == image.digest
    assert fetch(store, registry, platform=Platform.parse("linux/s390x")).digest != image.digest
    with pytest.raises(TareError, match=r"not for linux/riscv64; it has linux/.*linux/s390x"):
        fetch(store, registry, platform=Platform.parse("linux/riscv64"))


def test_an_image_of_another_machine_is_refused(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry, architecture="s390x")
    with pytest.raises(TareError, match="it is for linux/s390x"):
        fetch(store, registry)
    with pytest.raises(UsageError):
        Platform.parse("linux")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(
    store: ImageStore, registry: FakeRegistry, ranges: bool
) -> None:
    digest = two_layers(registry)["layers"][1]["digest"]
    registry.no_ranges = not ranges
    registry.cut[digest] = 200_000
    if not ranges:
        with pytest.raises(TareError, match=r"ends at 200000 of \d+ bytes"):
            fetch(store, registry)
        assert f"blob-{digest[7:]}" in partial(store)
        del registry.cut[digest]
    image = fetch(store, registry)
    assert (image.layers[1].directory / "big").stat().st_size == 300_000
    assert [headers.get("Range") for headers in registry.asked("GET", digest)][-1] == "bytes=200000-"
    assert partial(store) == []


def test_a_registry_that_always_breaks_at_one_place_is_given_up(store: ImageStore, registry: FakeRegistry) -> None:
    layer = two_layers(registry)["layers"][1]
    registry.blobs[layer["digest"]] = registry.blobs[layer["digest"]][:5000]
    registry.no_ranges = True
    with pytest.raises(TareError, match="ends at 5000 of"):
        fetch(store, registry)


def test_a_registry_that_is_busy_is_asked_again(store: ImageStore, registry: FakeRegistry) -> None:
    digest = two_layers(registry)["layers"][0]["digest"]
    registry.fail_first = {"/manifests/": 2, digest: 2}
    waits: list[float] = []
    fetch(store, registry, access=Access(attempts=3, wait=waits.append))
    assert len(waits) == 4
    registry.fail_first = {"/manifests/": 3}
    with pytest.raises(TareError, match="503"):
        fetch(store, registry)


def test_a_layer_that_is_not_its_digest_is_refused(store: ImageStore, registry: FakeRegistry) -> None:
    layer = two_layers(registry)["layers"][1]
    registry.blobs[layer["digest"]] = os.urandom(layer["size"])
    with pytest.raises(TareError, match=r"its content is sha256:.*lying"):
        fetch(store, registry)
    assert store.images() == []
    assert (store.directory / "partial" / f"blob-{layer['digest'][7:]}").stat().st_size == 0


def test_a_layer_longer_than_it_says_is_refused(store: ImageStore, registry: FakeRegistry) -> None:
    layer = two_layers(registry)["layers"][1]
    registry.blobs[layer["digest"]] += b"more"
    with pytest.raises(TareError, match="more than its manifest says"):
        fetch(store, registry)


def test_a_diff_id_that_lies_is_refused_and_not_kept(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry, rootfs={"type": "layers", "diff_ids": [sha256(b"1"), sha256(b"2")]})
    with pytest.raises(TareError, match="its diff id is"):
        fetch(store, registry)
    assert store.images() == []
    assert not (store.directory / "layers").exists()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_a_crash_lost_of_an_arriving_layer_comes_again(
    store: ImageStore, registry: FakeRegistry, share: float
) -> None:
    """A machine that lost power may keep a file's length and not its bytes."""
    layer = two_layers(registry)["layers"][1]
    path = store.directory / "partial" / f"blob-{layer['digest'][7:]}"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(int(layer["size"] * share)))
    image = fetch(store, registry)
    assert (image.layers[1].directory / "big").stat().st_size == 300_000
    assert partial(store) == []


def test_a_full_disk_keeps_nothing_to_resume(
    store: ImageStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_layers(registry)

    def full(hashing: Any, data: bytes) -> None:
        os.write(hashing._file.fd, data[:10])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("runtime.images.pull._Hashing.write", full)
    with pytest.raises(TareError, match="no space left"):
        fetch(store, registry)
    assert partial(store) == []


def test_an_image_cannot_claim_another_images_layer(store: ImageStore, registry: FakeRegistry) -> None:
    """Both are here, and the manifest leads from one to the other only by what a stranger's configuration says."""
    secret = registry.add_image("secret", [[member("secret", b"1")]])
    mine = registry.add_image("mine", [[member("mine", b"2")]])
    fetch(store, registry, "secret")
    fetch(store, registry, "mine")
    claimed = json.loads(registry.blobs[secret["config"]["digest"]])["rootfs"]
    config = json.dumps({"os": "linux", "rootfs": claimed}).encode()
    manifest = {**mine, "config": {"mediaType": CONFIG, **registry.add_blob(config)}}
    registry.add_manifest("claiming", "latest", manifest)
    with pytest.raises(TareError, match="its diff id is"):
        fetch(store, registry, "claiming")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", {"Labels": ["x"]}),
        ("config", {"Labels": {"x": 1}}),
        ("config", {"Env": {"PATH": "/"}}),
        ("config", {"Env": [1]}),
        ("config", {"Cmd": "sh"}),
        ("config", {"User": 0}),
        ("config", {"Volumes": ["/x"]}),
        ("history", ["a"]),
        ("created", 5),
        ("variant", ["v8"]),
    ],
)
def test_a_configuration_of_wrong_types_is_refused(
    store: ImageStore, registry: FakeRegistry, field: str, value: object
) -> None:
    two_layers(registry, **{field: value})
    with pytest.raises(TareError, match="of a wrong type"):
        fetch(store, registry)


def test_a_configuration_may_leave_out_nearly_everything(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry, config=None, history=None)
    assert fetch(store, registry).labels == {}


def test_a_strangers_labels_do_not_keep_the_store_from_being_swept(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry, config={"Labels": {"org.tare.machine.disk-bytes": "many"}})
    fetch(store, registry)
    assert store.sweep(unneeded=True) == []


@pytest.mark.parametrize("digest", ["1", "sha256:../../other/manifests/1", None, "sha512:" + "0" * 128])
def test_an_index_leads_on_by_digests_alone(store: ImageStore, registry: FakeRegistry, digest: object) -> None:
    two_layers(registry)
    entry = {"mediaType": MANIFEST, "digest": digest, "size": 1, "platform": {"os": "linux", **HERE}}
    registry.add_manifest("a/b", "index", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    with pytest.raises(TareError, match="not a sha256 digest"):
        fetch(store, registry, "a/b:index")
    entry |= {"platform": "linux"}
    registry.add_manifest("a/b", "index", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    with pytest.raises(TareError, match="it has nothing"):
        fetch(store, registry, "a/b:index")


def test_a_manifest_that_is_not_its_digest_is_refused(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry)
    registry.answer_digest = sha256(b"something else")
    with pytest.raises(TareError, match="its content is"):
        fetch(store, registry)
    registry.manifests[f"a/b/{sha256(b'x')}"] = registry.manifests["a/b/1"]
    with pytest.raises(TareError, match="its content is"):
        fetch(store, registry, f"a/b@{sha256(b'x')}")


def test_a_configuration_that_is_not_its_digest_is_refused(store: ImageStore, registry: FakeRegistry) -> None:
    config = two_layers(registry)["config"]
    registry.blobs[config["digest"]] = b"{}".ljust(config["size"])
    with pytest.raises(TareError, match="not what its manifest says"):
        fetch(store, registry)


LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(b""), "size": 0}
GOOD = {"mediaType": CONFIG, "digest": sha256(b"{}"), "size": 2}


@pytest.mark.parametrize(
    ("manifest", "kind", "why"),
    [
        (b"<html>", MANIFEST, "not JSON"),
        (b"[]", MANIFEST, "not a JSON object"),
        ({"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        ({"schemaVersion": 2, "layers": []}, "text/html", "not supported"),
        ({"schemaVersion": 2, "layers": [], "manifests": []}, MANIFEST, "neither"),
        ({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, MANIFEST, "it says it is|says it is"),
        ({"schemaVersion": 2, "manifests": []}, INDEX, "it has nothing"),
        ({"schemaVersion": 2, "manifests": 7}, INDEX, "it has nothing"),
        ({"schemaVersion": 2, "layers": [LAYER]}, MANIFEST, "incomplete"),
        ({"schemaVersion": 2, "config": GOOD, "layers": {}}, MANIFEST, "no list of layers"),
        ({"schemaVersion": 2, "config": GOOD, "layers": [{**LAYER, "size": -1}]}, MANIFEST, "impossible size"),
        ({"schemaVersion": 2, "config": GOOD, "layers": [{**LAYER, "digest": "sha256:../x"}]}, MANIFEST, "digest"),
        ({"schemaVersion": 2, "config": GOOD, "layers": [{**LAYER, "mediaType": "a/zip"}]}, MANIFEST, "'a/zip'"),
        (
            {"schemaVersion": 2, "config": {**GOOD, "mediaType": "x/helm"}, "layers": []},
            MANIFEST,
            "but x/helm",
        ),
        ({"schemaVersion": 2, "config": {**GOOD, "size": 1 << 40}, "layers": []}, MANIFEST, "too many"),
        ({"schemaVersion": 2, "config": GOOD, "layers": [LAYER]}, MANIFEST, "names no layers"),
    ],
)
def test_lying_manifests_are_refused_by_name(
    store: ImageStore, registry: FakeRegistry, manifest: Any, kind: str, why: str
) -> None:
    registry.add_blob(b"{}")
    registry.add_manifest("a/b", "1", manifest, kind)
    with pytest.raises(TareError, match=why):
        fetch(store, registry)
    assert store.images() == []


def test_an_unknown_image_is_a_sentence(store: ImageStore, registry: FakeRegistry) -> None:
    with pytest.raises(TareError, match="does not have it: manifest unknown"):
        fetch(store, registry, "no/such")


def test_a_registry_that_is_not_there_is_a_sentence(store: ImageStore) -> None:
    with pytest.raises(TareError, match=r"Connection refused.*is it running"):
        pull(store, ImageRef.parse("127.0.0.1:1/x"), QUICK)


def test_a_token_is_asked_for_with_credentials(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry)
    registry.token, registry.basic = "secret-token", "user:pass"
    fetch(store, registry, access=Access(credentials=Credentials("user", "pass"), attempts=1))
    (query,) = {path for _, path, _ in registry.requests if path.startswith("/token")}
    assert "service=test" in query
    assert "scope=repository" in query
    with pytest.raises(TareError, match=r"authorization server answered 401.*--creds"):
        fetch(store, registry)


def test_a_password_is_given_when_asked_for(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry)
    registry.basic = "user:pass"
    fetch(store, registry, access=Access(credentials=Credentials("user", "pass"), attempts=1))
    with pytest.raises(TareError, match="who you are"):
        fetch(store, registry)
    with pytest.raises(TareError, match="access denied"):
        fetch(store, registry, access=Access(credentials=Credentials("user", "wrong"), attempts=1))


def test_run_pulls_only_what_is_missing(store: ImageStore, registry: FakeRegistry) -> None:
    two_layers(registry)
    name = f"{registry.host}/a/b:1"
    with pytest.raises(TareError, match="not on this host"):
        pull_if_missing(store, name, "never", QUICK)
    image = pull_if_missing(store, name, "missing", QUICK)
    registry.requests.clear()
    assert pull_if_missing(store, name, "missing", QUICK) == image
    assert registry.requests == []
    assert pull_if_missing(store, name, "always", QUICK) == image
    assert registry.requests != []


def test_two_pulls_at_once_fetch_each_layer_once(tmp_path: Path, registry: FakeRegistry) -> None:
    layers = two_layers(registry)["layers"]
    failures: list[BaseException] = []
    begin = threading.Barrier(3)

    def one() -> None:
        try:
            begin.wait(10)
            fetch(ImageStore(tmp_path / "root"), registry)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(ImageStore(tmp_path / "root").images()) == 1
    assert len(registry.asked("GET", layers[1]["digest"])) <= 3


KEYS = ["config", "layers", "mediaType", "digest", "size", "rootfs", "diff_ids", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([CONFIG, sha256(b"")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.binary(max_size=40))
def test_any_document_is_understood_or_refused(document: Any, noise: bytes) -> None:
    for data in (json.dumps(document).encode(), noise):
        with suppress(TareError):
            checked_manifest(parse_object(data, "x"), "x")
        with suppress(TareError):
            checked_config(data, 1, "x")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200_000))
def test_whatever_part_is_here_the_rest_is_fetched(part: int) -> None:
    with serving() as registry, tempfile.TemporaryDirectory() as scratch:
        layer = two_layers(registry)["layers"][1]
        store = ImageStore(Path(scratch))
        (store.directory / "partial").mkdir(parents=True)
        (store.directory / "partial" / f"blob-{layer['digest'][7:]}").write_bytes(
            registry.blobs[layer["digest"]][:part]
        )
        image = fetch(store, registry)
        assert (image.layers[1].directory / "file").read_bytes() == b"2"
