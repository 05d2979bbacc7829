"""`edgeft devices --detect`: a device file of this machine, from files that systems of other kinds have too."""

import sys

import pytest

from edgeft import cli, detect
from edgeft.contract.device import read_device

PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: nothing
"""
N100 = "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t\t: fpu sse2 avx avx2 fma f16c avx_vnni\n"


def test_this_machine_as_a_device_file(tmp_path, capsys):
    cli.cli.main(["devices", "--detect"], standalone_mode=False)
    out, err = capsys.readouterr()
    (tmp_path / "mine.toml").write_text(out)
    device = read_device(tmp_path / "mine.toml")
    assert device.verified == "checked"
    assert device.limits.memory_mib == detect.memory_mib()
    assert device.cpu.threads == detect.cores()
    assert device.cpu.isa == detect.instructions()
    assert device.limits.bandwidth_gb_s > 0.5
    assert device.limits.int8_gops > 0.5
    assert f"{device.limits.bandwidth_gb_s} GB/s" in err
    assert "GB/s" not in out, "how it was measured goes to stderr"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what Linux tells")
def test_the_file_serves_fit(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(detect.detect())
    cli.cli.main(["devices", str(tmp_path / "mine.toml")], standalone_mode=False)
    assert capsys.readouterr().out == (tmp_path / "mine.toml").read_text()


@pytest.mark.parametrize(("text", "isa", "name"), [
    (PI, ["neon", "dotprod", "fp16"], None), (N100, ["avx2", "fma", "f16c", "avx_vnni"], "Intel(R) N100"),
    ("", [], None)])
def test_instructions_of_other_processors(monkeypatch, text, isa, name):
    monkeypatch.setattr(detect, "_read", lambda path: text if str(path) == "/proc/cpuinfo" else "")
    assert detect.instructions() == isa
    assert detect.model() == name if name else detect.model()


@pytest.mark.parametrize(("files", "allowed"), [
    ({"cpu.max": "150000 100000\n"}, 1.5), ({"cpu.max": "max 100000\n"}, 1 << 16), ({}, 1 << 16),
    ({"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
    ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 1 << 16), ({"cpu.max": "1000 100000\n"}, 1.0)])
def test_a_control_groups_share_of_time(tmp_path, files, allowed):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert detect.quota([tmp_path, tmp_path / "none"]) == allowed


def test_a_control_group_bounds_memory_and_cores(tmp_path, monkeypatch):
    whole, all_cores = detect.memory_mib(), detect.cores()
    monkeypatch.setattr(detect, "_groups", lambda: [tmp_path])
    (tmp_path / "memory.max").write_text(f"{96 << 20}\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert (detect.memory_mib(), detect.cores()) == (96, 1)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert detect.memory_mib() >= whole
    assert detect.cores() >= all_cores


def test_detect_stands_alone(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["devices", "raspberry-pi-5", "--detect"])
    assert caught.value.code == 2
    assert "--detect stands alone" in capsys.readouterr().err
