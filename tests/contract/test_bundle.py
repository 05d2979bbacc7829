"""A bundle is what its manifest says, down to the byte."""

import json

import pytest

from edgeft.contract.bundle import (
    FORMAT,
    GRAPH,
    GRAPH_DATA,
    MANIFEST,
    REQUIRED,
    SlotGroup,
    check_name,
    describe_file,
    read_bundle,
    write_manifest,
)
from edgeft.contract.bundle_adapters import put_adapter, remove_adapter
from edgeft.contract.errors import EdgeftError, UsageError

FILES = {GRAPH: b"graph", GRAPH_DATA: b"weights" * 9, "tokenizer.json": b"{}", "adapters/menu.safetensors": b"menu",
         "adapters/light.safetensors": b"light"}
GROUP = {"name": "model.layers.0.self_attn.qkv", "modules": ["q_proj", "k_proj"], "in": 8, "out": [8, 4]}


@pytest.fixture
def bundle(tmp_path):
    """A folder that looks like a bundle."""
    folder = tmp_path / "bundle"
    (folder / "adapters").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    manifest = {"format": FORMAT, "base": {"fingerprint": "3f9a"}, "graph": {}, "slots": {"lowrank": [GROUP]},
                "context": 64, "device": {}, "default_adapter": "menu", "prompt": {"kind": "pair", "separator": "\n"},
                "adapters": {name: {"file": f"adapters/{name}.safetensors"} for name in ("menu", "light")},
                "files": {name: describe_file(folder / name) for name in FILES}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def change(folder, edit):
    """Rewrite the manifest after `edit` has changed it in place."""
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def refusal(folder, error=EdgeftError):
    with pytest.raises(error) as caught:
        read_bundle(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def broken(folder, whole=True):
    with pytest.raises(EdgeftError, match="is not as it was exported") as caught:
        read_bundle(folder).check_files(whole=whole)
    return str(caught.value)


def test_a_good_bundle(bundle):
    read = read_bundle(bundle)
    assert read.fingerprint == "3f9a"
    assert read.adapters == {"menu": "adapters/menu.safetensors", "light": "adapters/light.safetensors"}
    assert read.default_adapter == "menu"
    assert read.prompt.separator == "\n"
    assert read.slots == [SlotGroup(GROUP["name"], ("q_proj", "k_proj"), 8, (8, 4))]
    assert read.slots[0].to_json() == GROUP
    assert read.adapter_file("light") == bundle / "adapters/light.safetensors"
    assert read.check_files(whole=True) == sum(map(len, FILES.values()))
    later = [name for name in FILES if name == GRAPH_DATA or name.startswith("adapters/")]  # read when they are opened
    assert read.check_files(whole=False) == sum(map(len, FILES.values())) - sum(len(FILES[name]) for name in later)


def test_an_adapter_that_is_not_there(bundle):
    with pytest.raises(UsageError, match=r"has no adapter 'meun'. Did you mean 'menu'"):
        read_bundle(bundle).adapter_file("meun")


def test_a_folder_that_is_no_bundle(tmp_path):
    assert "is no bundle" in refusal(tmp_path, UsageError)
    assert "there is no such bundle" in refusal(tmp_path / "none", UsageError)


@pytest.mark.parametrize("number", [FORMAT + 1, 0, None, "1"])
def test_another_format(bundle, number):
    change(bundle, lambda manifest: manifest.update(format=number))
    assert f"declared {number!r}, this edgeft reads {FORMAT}" in refusal(bundle)


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_and_mistyped_key(bundle, key):
    change(bundle, lambda manifest: manifest.update({key: "text"}))
    assert f"{key}: must be {REQUIRED[key].__name__}, found str" in refusal(bundle)
    change(bundle, lambda manifest: manifest.pop(key))
    assert f"{key}: must be {REQUIRED[key].__name__}, found NoneType" in refusal(bundle)


def test_all_missing_keys_at_once(bundle):
    (bundle / MANIFEST).write_text(json.dumps({"format": FORMAT}))
    message = refusal(bundle)
    assert all(f"  {key}: " in message for key in REQUIRED)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_manifest_that_is_no_json_object(bundle, text):
    (bundle / MANIFEST).write_text(text)
    assert "JSON" in refusal(bundle)


@pytest.mark.parametrize("entry", [{}, {"file": "adapters/none.safetensors"}, "adapters/menu.safetensors"])
def test_an_adapter_whose_file_is_not_listed(bundle, entry):
    change(bundle, lambda manifest: manifest["adapters"].update(menu=entry))
    assert "adapters.menu" in refusal(bundle)


@pytest.mark.parametrize("edit", [
    lambda manifest: manifest["adapters"].update(menu={"file": ["x"]}),
    lambda manifest: manifest["files"].update({GRAPH: 5}),
    lambda manifest: manifest["files"].update({GRAPH: {}}),
    lambda manifest: manifest["base"].clear(),
    lambda manifest: manifest["slots"].update(lowrank=[5]),
    lambda manifest: manifest["slots"].update(lowrank=[{}])],
    ids=["adapter file", "file", "file without size", "fingerprint", "slots", "slot"])
def test_a_manifest_that_is_wrong_further_down(bundle, edit):
    change(bundle, edit)
    with pytest.raises(EdgeftError, match=MANIFEST):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [name for name in FILES if name != GRAPH_DATA])
def test_a_flipped_byte_is_found(bundle, name):
    (bundle / name).write_bytes(bytes([FILES[name][0] ^ 1]) + FILES[name][1:])
    for whole in (True, False) if not name.startswith("adapters/") else (True,):
        message = broken(bundle, whole)
        assert f"  {name}  declared sha256" in message
        assert message.count("declared") == 1


def test_a_default_adapter_that_is_not_there(bundle):
    change(bundle, lambda manifest: manifest.update(default_adapter="gone"))
    with pytest.raises(UsageError, match="has no adapter 'gone'"):
        read_bundle(bundle).adapter_file(read_bundle(bundle).default_adapter)


def test_a_flipped_byte_of_the_weights_is_found_by_the_whole_check(bundle):
    (bundle / GRAPH_DATA).write_bytes(b"W" + FILES[GRAPH_DATA][1:])
    assert f"  {GRAPH_DATA}  declared sha256" in broken(bundle)
    read_bundle(bundle).check_files(whole=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("whole", [True, False])
def test_another_size_is_found(bundle, name, whole):
    (bundle / name).write_bytes(FILES[name] + b"x")
    assert f"  {name}  declared {len(FILES[name])} bytes  found {len(FILES[name]) + 1} bytes" in broken(bundle, whole)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(bundle, name):
    (bundle / name).unlink()
    assert f"  {name}: is missing" in broken(bundle, whole=False)


def test_every_fault_is_listed(bundle):
    (bundle / GRAPH).unlink()
    (bundle / "tokenizer.json").write_bytes(b"[]")
    (bundle / GRAPH_DATA).write_bytes(b"")
    message = broken(bundle)
    assert all(name in message for name in (GRAPH, "tokenizer.json", GRAPH_DATA))


def test_a_link_is_refused_even_to_the_same_bytes(bundle, tmp_path):
    (bundle / GRAPH).rename(tmp_path / "elsewhere")
    (bundle / GRAPH).symlink_to(tmp_path / "elsewhere")
    assert f"{GRAPH}: points outside" in broken(bundle)


def test_a_linked_folder_is_refused(bundle, tmp_path):
    (bundle / "adapters").rename(tmp_path / "elsewhere")
    (bundle / "adapters").symlink_to(tmp_path / "elsewhere")
    assert "points outside" in broken(bundle)


@pytest.mark.parametrize("name", ["../secret", "adapters/../../secret", "ABSOLUTE", "adapters\\..\\secret"])
def test_a_path_outside_is_refused(bundle, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = name.replace("ABSOLUTE", str(secret))
    change(bundle, lambda manifest: manifest["files"].update({name: describe_file(secret)}))
    assert "points outside the bundle" in broken(bundle)


def test_a_folder_in_place_of_a_file(bundle):
    (bundle / GRAPH).unlink()
    (bundle / GRAPH).mkdir()
    assert f"{GRAPH}: is missing" in broken(bundle)


@pytest.mark.parametrize("written", [False, True])
def test_put_an_adapter_and_fail(bundle, tmp_path, monkeypatch, written):
    """The file is there if the manifest names it, and only then."""
    file = tmp_path / "stage/adapters/late.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"late")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["adapters/late.safetensors"] = describe_file(file)

    def stopped(folder, made):
        if written:
            write_manifest(folder, made)
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeft.contract.bundle_adapters.write_manifest", stopped)
    with pytest.raises(KeyboardInterrupt):
        put_adapter(bundle, tmp_path / "stage", "adapters/late.safetensors", manifest)
    assert (bundle / "adapters/late.safetensors").exists() == written
    read_bundle(bundle).check_files(whole=True)


def test_remove_the_default_adapter(bundle):
    remove_adapter(bundle, "menu")
    read = read_bundle(bundle)
    assert list(read.adapters) == ["light"]
    assert read.default_adapter is None
    assert not (bundle / "adapters/menu.safetensors").exists()
    read.check_files(whole=True)


def test_remove_another_adapter(bundle):
    remove_adapter(bundle, "light")
    read = read_bundle(bundle)
    assert read.default_adapter == "menu"
    assert list(read.adapters) == ["menu"]
    read.check_files(whole=True)


def test_remove_what_is_not_there_changes_nothing(bundle):
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match="Did you mean 'light'"):
        remove_adapter(bundle, "lihgt")
    assert (bundle / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("name", ["../secret", "ABSOLUTE"])
def test_remove_never_leaves_the_bundle(bundle, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = name.replace("ABSOLUTE", str(secret))

    def edit(manifest):
        manifest["files"][name] = describe_file(secret)
        manifest["adapters"]["menu"] = {"file": name}

    change(bundle, edit)
    with pytest.raises(EdgeftError):
        remove_adapter(bundle, "menu")
    assert secret.exists()


def test_remove_an_adapter_that_names_the_graph(bundle):
    change(bundle, lambda manifest: manifest["adapters"].update(menu={"file": GRAPH}))
    with pytest.raises(EdgeftError):
        remove_adapter(bundle, "menu")
    assert (bundle / GRAPH).exists()


@pytest.mark.parametrize("name", ["menu", "a", "Menu-2.0_x", "x" * 64, "7"])
def test_adapter_names_that_can_be(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "none", "-x", ".x", "a b", "a/b", "..", "a:1", "x" * 65, "ä", "a\n"])
def test_adapter_names_that_cannot_be(name):
    with pytest.raises(UsageError, match="adapter name"):
        check_name(name)


@pytest.mark.parametrize(("out", "width", "blocks"), [
    ((64,), 64, 1), ((64, 32, 32), 32, 4), ((96, 96), 96, 2), ((576, 192, 192), 192, 5), ((97, 97), 97, 2),
    ((97, 64), 161, 1), ((1536, 128, 128), 1792, 1), ((1024, 128, 128), 128, 10), ((33,), 33, 1)])
def test_blocks_are_equally_wide_and_each_belongs_to_one_module(out, width, blocks):
    group = SlotGroup("g", tuple(f"m{index}" for index in range(len(out))), 8, out)
    assert (group.width, group.blocks) == (width, blocks)
    assert group.width * group.blocks == sum(out)
    if group.blocks > 1:
        edges = {sum(out[:index]) for index in range(len(out))}
        assert edges <= {block * group.width for block in range(group.blocks)}
    assert SlotGroup.from_json(json.loads(json.dumps(group.to_json()))) == group
