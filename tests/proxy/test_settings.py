"""Settings: units, precedence, and one clear line for every error."""

import dataclasses
import pwd
import socket
import tomllib
from pathlib import Path

import pytest

from proxy.commands import options
from proxy.commands.options import SettingsError, load
from proxy.settings import Settings, key_of
from proxy.units import HostPort, format_size, parse_duration, parse_host_pattern, parse_rate, parse_size
from tests.proxy.rights import refusing

EXAMPLE = Path(__file__).parents[2] / "config" / "node.toml"


@pytest.fixture(autouse=True)
def no_file_of_this_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "size"),
    [("200GiB", 200 << 30), ("200Gi", 200 << 30), ("5GB", 5 * 10**9), ("5 g", 5 * 10**9), ("1.5kB", 1500), (7, 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "5 apples", "1e9", "9" * 400, "5GiBs", "٣GB", "9999999PB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_rates_and_durations():
    assert parse_rate("500MB/s") == parse_rate("500MB") == 500 * 10**6
    assert [parse_duration(text) for text in ("250ms", "10s", "5m", "1h", 3)] == [0.25, 10, 300, 3600, 3]
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate("5/s/s")
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration("5 weeks")


def test_sizes_for_people():
    shown = [format_size(n) for n in (0, 999, 1000, 90_900_000, 999_600, 2 * 10**15, 5 * 10**18)]
    assert shown == ["0 B", "999 B", "1 kB", "90.9 MB", "1 MB", "2 PB", "5e+03 PB"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:1", "localhost", 1),
        ("127.0.0.1:8090", "127.0.0.1", 8090),
        ("[::1]:0", "::1", 0),
        ("a_b.c:9", "a_b.c", 9),
    ],
)
def test_addresses(text, host, port):
    assert HostPort.parse(text) == HostPort(host, port)
    assert str(HostPort(host, port)) == text


@pytest.mark.parametrize(
    "text", ["", "8090", ":8090", "::1:8090", "host:", "host:70000", "http://h:1", "[1.2.3.4]:5", "a b:1"]
)
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        HostPort.parse(text)


@pytest.mark.parametrize("text", ["host.docker.internal", "*.example.org", "*", "a_b", "10.0.0.1", "::1", "[::1]"])
def test_names_of_hosts(text):
    assert parse_host_pattern(text) == text
    assert parse_host_pattern(f" {text}.") == text  # as resolvers write it


@pytest.mark.parametrize(
    "text",
    ["", ".", "bad host!", "host:8090", "http://h", "host/", ".example.org", "b\u00fccher.example", "-", "a" * 254],
)
def test_what_is_no_name_of_a_host(text):
    with pytest.raises(ValueError, match="is not a host name"):
        parse_host_pattern(text)


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('listen = "127.0.0.1:1"\norigin = "https://file.example"\nmax-size = "1GB"\nseed = ["a:1", "b:2"]')
    environment = {"HUBMESH_LISTEN": "127.0.0.1:2", "HUBMESH_ORIGIN": "https://environment.example", "PATH": "/bin"}
    settings = load({"config": file, "listen": "127.0.0.1:3"}, environment)
    assert settings.listen == HostPort("127.0.0.1", 3)
    assert settings.origin == "https://environment.example"
    assert settings.max_size == 10**9
    assert settings.seeds == (HostPort("a", 1), HostPort("b", 2))
    assert settings.role == "peer"


def test_the_environment_says_lists_and_yes_and_no():
    environment = {
        "HUBMESH_SEED": "a:1, b:2 c:3",
        "HUBMESH_MDNS": "off",
        "HUBMESH_OFFLINE": "1",
        "HUBMESH_MAX_UPLOAD": "",  # how templates express "not set"
    }
    settings = load({}, environment)
    assert [str(seed) for seed in settings.seeds] == ["a:1", "b:2", "c:3"]
    assert (settings.mdns, settings.offline, settings.max_upload) == (False, True, None)


def test_the_file_in_its_usual_place_is_read(tmp_path):
    place = tmp_path / ".config" / "hubmesh"
    place.mkdir(parents=True)
    (place / "node.toml").write_text("mdns = false")
    assert load({}, {}).mdns is False


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HUBMESH_LISTN": "x"}, "HUBMESH_LISTN: no such setting (did you mean HUBMESH_LISTEN?)"),
        (
            {"HUBMESH_LISTEN": "nowhere"},
            "HUBMESH_LISTEN: 'nowhere' is not HOST:PORT such as 127.0.0.1:8090 or [::1]:8090",
        ),
        ({"HUBMESH_ROLE": "boss"}, "HUBMESH_ROLE: 'boss' is not one of peer, seed"),
        ({"HUBMESH_MDNS": "maybe"}, "HUBMESH_MDNS: 'maybe' is neither true nor false"),
        (
            {"HUBMESH_ORIGIN": "ftp://x"},
            "HUBMESH_ORIGIN: 'ftp://x' is not the URL of a Hub such as https://huggingface.co",
        ),
        ({"HUBMESH_ORIGIN_STALL_TIMEOUT": "0"}, "HUBMESH_ORIGIN_STALL_TIMEOUT: '0': must be more than zero"),
        ({"HUBMESH_ORIGIN_CONNECT_TIMEOUT": "25h"}, "HUBMESH_ORIGIN_CONNECT_TIMEOUT: '25h': must be at most 1d"),
        ({"HUBMESH_DRAIN_TIMEOUT": "99999999999d"}, "HUBMESH_DRAIN_TIMEOUT: '99999999999d': must be at most 1d"),
        ({"HUBMESH_FRESHNESS": "3651d"}, "HUBMESH_FRESHNESS: '3651d': must be at most 3650d"),
        ({"HUBMESH_CONFIG": "/nowhere/node.toml"}, "/nowhere/node.toml: No such file or directory"),
    ],
)
def test_a_bad_environment_is_one_clear_line(environment, message):
    with pytest.raises(SettingsError) as caught:
        load({}, environment)
    assert caught.value.message == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listn = 'x'", "{}: listn: no such setting (did you mean listen?)"),
        ("max-size = true", "{}: max-size: True is not a valid SIZE"),
        ("mdns = 'perhaps'", "{}: mdns: 'perhaps' is neither true nor false"),
        ("listen = ['a:1']", "{}: listen: ['a:1'] is not a valid HOST:PORT"),
        ("seed = [1]", "{}: seed: 1 is not HOST:PORT such as 127.0.0.1:8090 or [::1]:8090"),
        ("data-dir = ''", "{}: data-dir: '' is not a valid DIR"),
        ('hf-cache = "a\\u0000b"', "{}: hf-cache: 'a\\x00b' is not a path: it contains a NUL character"),
        ("data-dir = '~nosuchuser/x'", "{}: data-dir: '~nosuchuser/x': cannot find that home directory"),
        ("[mesh]\nmdns = true", "{}: mesh: no such setting"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, message):
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load({"config": file}, {})
    assert caught.value.message.startswith(message.format(file))
    assert "\n" not in caught.value.message


def test_what_waits_longest_can_be_waited_for():
    longest = {setting.name: "1d" for setting in dataclasses.fields(Settings) if setting.name.endswith("timeout")}
    settings = load(longest, {})
    with socket.socket() as link:
        for name in longest:
            link.settimeout(getattr(settings, name))
    assert load({"freshness": "3650d", "grant_life": "3650d"}, {}).freshness == 3650 * 86400


def test_who_has_no_home_names_the_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # as in a container that runs under an arbitrary user id
    assert load({"data_dir": str(tmp_path)}, {}).data_dir == tmp_path
    with pytest.raises(SettingsError, match="such as --data-dir"):
        load({}, {})


@pytest.mark.parametrize("place", ["home", "machine"])
def test_a_file_in_a_home_that_is_somebody_elses_is_not_ours(monkeypatch, tmp_path, place):
    stat = refusing("node.toml")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        if place == "home":
            patch.setattr(options, "CONFIG_FILES", options.CONFIG_FILES[:1])
            assert load({}, {}).listen == HostPort("127.0.0.1", 8090)
        else:
            patch.setattr(Path, "read_text", lambda path, _: stat(path))
            with pytest.raises(SettingsError, match=r"/etc/hubmesh/node\.toml: Permission denied"):
                load({}, {})


def test_a_file_that_is_not_toml_is_one_clear_line(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text("listen: 127.0.0.1:1")
    with pytest.raises(SettingsError) as caught:
        load({"config": file}, {})
    assert caught.value.message.startswith(f"{file}: ")
    assert "line 1" in caught.value.message


@pytest.mark.parametrize(
    "flags",
    [
        {"listen": "0.0.0.0:9", "mesh_listen": "127.0.0.1:9"},
        {"advertise": "0.0.0.0:9"},
        {"seeds": ("10.0.0.1:0",)},
        {"seeds": ("127.0.0.1:9",), "mesh_listen": "127.0.0.1:9"},
        {"origin": "http://127.0.0.1:8090"},
    ],
    ids=str,
)
def test_settings_that_cannot_go_together(flags):
    with pytest.raises(SettingsError):
        load(flags, {})


def test_a_service_called_hubmesh_does_not_stop_a_pod():
    links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8090_TCP", "PORT_8090_TCP_ADDR"]
    environment = {f"HUBMESH_{link}": "tcp://10.0.0.1:8090" for link in (*links, *(f"SEED_{link}" for link in links))}
    assert load({}, environment) == load({}, {})


def test_the_example_file_explains_every_setting_with_its_default():
    lines = EXAMPLE.read_text().splitlines()
    keys = [key_of(setting) for setting in dataclasses.fields(Settings)]
    shown = {}
    for number, line in enumerate(lines):
        # Settings are set or shown commented out: `#listen = …`. Prose has a space after the "#".
        key, equals, value = line.lstrip("#").partition(" = ")
        if equals and not line.startswith("# ") and line:
            assert lines[number - 1].startswith("# "), f"{key} is not explained"
            shown[key] = value
    assert list(shown) == keys
    # With every comment removed the file is valid, and it shows the default where there is one.
    values = tomllib.loads("\n".join(f"{key} = {value}" for key, value in shown.items()))
    for setting in dataclasses.fields(Settings):
        about = setting.metadata["about"]
        if about.default is not None:
            assert values[key_of(setting)] == about.default
        elif about.parse is not None and not about.repeated_as:
            about.parse(values[key_of(setting)])


def test_the_example_file_as_it_stands_changes_nothing():
    assert load({"config": EXAMPLE}, {}) == load({}, {})
