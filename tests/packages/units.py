"""Running a service of a machine as its unit says, where there is no systemd that would.

What is kept of the unit: the user, the group, the settings' file, a variable, the state and the cache directory with
their modes, the number of files (fewer where this machine's root may not have as many), the capabilities, no new
privileges, a system that is read-only but for those two directories, a /tmp of its own, no homes. What is left to
`systemd-analyze verify` alone is in `LEFT`. An entry in neither list fails, so that nobody adds one that no test has a
look at.
"""

import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.packages.machine import Machine
from tests.support.deadlines import scaled

KEPT = {
    *("User", "Group", "EnvironmentFile", "StateDirectory", "StateDirectoryMode", "ExecStart", "LimitNOFILE"),
    *("AmbientCapabilities", "CapabilityBoundingSet", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp"),
    *("UMask", "CacheDirectory", "CacheDirectoryMode", "Environment"),
}
# Where systemd puts the directories that it makes for a service.
DIRECTORIES = {"StateDirectory": "/var/lib", "CacheDirectory": "/var/cache"}
LEFT = {
    *("ExecReload", "Restart", "RestartSec", "TimeoutStopSec", "KillMode", "OOMPolicy", "PrivateDevices"),
    *("ProtectControlGroups", "ProtectKernelModules", "ProtectKernelTunables", "RestrictAddressFamilies"),
    *("RestrictSUIDSGID", "LockPersonality", "Type", "TimeoutStartSec", "WatchdogSec", "RestartSteps"),
    *("RestartMaxDelaySec", "ProtectClock", "ProtectHostname", "ProtectKernelLogs", "RemoveIPC", "RestrictNamespaces"),
    *("RestrictRealtime", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
}
SETTING = re.compile(r"([A-Z_]+)='([^'\\]*)'")
STOPS_WITHIN = 30.0


def service(machine: Machine, unit: str) -> dict[str, str]:
    """Return the entries of [Service] of an installed unit."""
    text = machine.run("cat", f"/usr/lib/systemd/system/{unit}.service")
    section = text.partition("[Service]\n")[2].partition("\n[")[0]
    lines = [line for line in section.splitlines() if line and not line.startswith("#")]
    entries = dict(line.split("=", 1) for line in lines)
    assert len(entries) == len(lines), "an entry that is there twice"
    assert entries.keys() - KEPT - LEFT == set()
    return entries


def settings(machine: Machine, entry: str) -> list[str]:
    """Return what an EnvironmentFile= has, as NAME=VALUE each; a missing one is an error unless it begins with -.

    Systemd knows more forms than this: a line of another form is an error.
    """
    path = entry.removeprefix("-")
    if entry.startswith("-") and not machine.exists(path):
        return []
    lines = [line for line in machine.run("cat", path).splitlines() if line and not line.startswith("#")]
    found = [match for line in lines if (match := SETTING.fullmatch(line))]
    assert len(found) == len(lines), "a setting that isn't NAME='VALUE'"
    return [f"{match[1]}={match[2]}" for match in found]


def script(machine: Machine, unit: str) -> str:
    """Return the lines of a shell that become the unit's program."""
    entries = service(machine, unit)
    user, group = entries["User"], entries["Group"]
    home = machine.run("getent", "passwd", user).split(":")[5]
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": home}
    variables |= {"USER": user, "LOGNAME": user}
    environment = [f"{name}={value}" for name, value in variables.items()]
    environment += shlex.split(entries.get("Environment", ""))
    environment += settings(machine, entries["EnvironmentFile"])
    capabilities = entries.get("AmbientCapabilities", "").removeprefix("CAP_").lower()
    assert entries["CapabilityBoundingSet"].removeprefix("CAP_").lower() == capabilities
    kept = f"-all,+{capabilities}" if capabilities else "-all"
    ambient = ["--ambient-caps", f"+{capabilities}"] if capabilities else []
    who = ["setpriv", "--reuid", user, "--regid", group, "--init-groups", "--no-new-privs", "--bounding-set", kept]
    who += ["--inh-caps", kept, *ambient]
    assert (entries["ProtectSystem"], entries["ProtectHome"], entries["PrivateTmp"]) == ("strict", "yes", "yes")
    assert entries["NoNewPrivileges"] == "yes"
    lines = []
    for entry in DIRECTORIES.keys() & entries.keys():
        folder = f"{DIRECTORIES[entry]}/{entries[entry]}"
        lines.append(f"install -d -o {user} -g {group} -m {entries[f'{entry}Mode']} {folder}")
        lines.append(f"mount --bind {folder} {folder}")
    # The mounts are this process's alone.
    lines += [f"mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs {folder}" for folder in ("/tmp", "/var/tmp")]
    lines += [f"mount -t tmpfs -o mode=0,nosuid,nodev,noexec tmpfs {folder}" for folder in ("/home", "/root")]
    lines.append("mount -o remount,bind,ro /")
    lines.append(f"echo $$ >/run/{unit}.number")
    lines.append(f"umask {entries['UMask']}")
    lines.append(f'ulimit -n {entries["LimitNOFILE"]} 2>/dev/null || ulimit -n "$(ulimit -H -n)"')
    lines.append(shlex.join(["exec", *who, "env", "-i", "-C", "/", *environment, *shlex.split(entries["ExecStart"])]))
    return "\n".join(lines)


@dataclass
class Service:
    """A unit's program that runs; `log` is what it has printed, a file of the outer world."""

    machine: Machine
    unit: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """End it as systemd does, by SIGTERM to its first process."""
        if self.process.poll() is None:
            self.machine.run("sh", "-c", f"kill -TERM $(cat /run/{self.unit}.number)")
        status = self.process.wait(STOPS_WITHIN)
        assert status == 0, f"{self.unit} ended with {status}:\n{self.said()}"

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


def start(machine: Machine, unit: str, folder: Path) -> Service:
    """Start a unit's program; its log goes to `folder`."""
    path = folder / f"{unit}.log"
    with path.open("ab") as log:
        command = ["unshare", "--mount", "sh", "-euc", script(machine, unit)]
        return Service(machine, unit, machine.start(command, log), path)


def answered(service: Service, *curl: str, within: float = 60.0) -> str:
    """Return what curl's options bring, once the service answers with a status below 400.

    Raises:
        AssertionError: It has ended, or hasn't answered in time; says what it printed.
    """
    deadline = time.monotonic() + scaled(within)
    while True:
        done = service.machine.attempt("curl", "--silent", "--show-error", "--fail-with-body", *curl)
        if done.returncode == 0:
            return done.stdout
        ended = service.process.poll()
        if ended is not None or time.monotonic() > deadline:
            how = "ended" if ended is not None else "didn't answer"
            raise AssertionError(f"{service.unit} {how}: {done.stdout}{done.stderr}\n{service.said()}")
        time.sleep(0.2)
