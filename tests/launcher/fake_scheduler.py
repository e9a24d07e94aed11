"""SLURM's programs that only remember: small ones to put first on PATH.

scheduler = FakeScheduler(tmp_path / "slurm")
monkeypatch.setenv("PATH", scheduler.path)
... llmscale submit ...
scheduler.set_state("1", "RUNNING", nodes="node[1-2]")
assert scheduler.calls("sbatch") == [["--parsable", ...]]
"""

import os
from pathlib import Path

REMEMBER = """\
#!/bin/bash
# Made by tests/launcher/fake_scheduler.py.
folder={folder}
name=$(basename "$0")
(IFS=$'\\x1f'; printf '%s\\n' "$name"$'\\x1f'"${{*//$'\\n'/ }}") >>"$folder/calls"
if [[ -e $folder/refusals/$name ]]; then
    cat "$folder/refusals/$name" >&2
    exit 1
fi
"""

SBATCH = """\
id=$(($(cat "$folder/last_id") + 1))
echo $id >"$folder/last_id"
echo $id
"""

SQUEUE = """\
for argument in "$@"; do
    [[ $argument == --jobs=* ]] && wanted=${argument#--jobs=}
done
found=0
for id in ${wanted//,/ }; do
    for file in "$folder/jobs/$id" "$folder/jobs/$id"_*; do
        [[ -s $file ]] && cat "$file" && found=1
    done
done
if [[ $found == 0 && $wanted != *,* ]]; then
    echo "slurm_load_jobs error: Invalid job id specified" >&2
    exit 1
fi
exit 0
"""

SCONTROL = """\
[[ $1 == show ]] && sed "s/Restarts=same/Restarts=${SLURM_RESTART_COUNT:-0}/" "$folder/job"
exit 0
"""

SRUN = """\
step=${@: -2:1}  # of `... -m llmscale cluster STEP RUN`
[[ -e $folder/steps/$step ]] || exit 0
export RUN=${@: -1}
exec bash "$folder/steps/$step"
"""

PROGRAMS = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "scancel": "", "srun": SRUN}


class FakeScheduler:
    """A SLURM of one folder. Jobs stand as `set_state` says; nothing ever runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        for made in (self.programs, folder / "jobs", folder / "refusals", folder / "steps"):
            made.mkdir(parents=True)
        (folder / "last_id").write_text("0\n")
        (folder / "calls").touch()
        self.set_job()
        for name, body in PROGRAMS.items():
            program = self.programs / name
            program.write_text(REMEMBER.format(folder=folder) + body)
            program.chmod(0o755)

    @property
    def path(self) -> str:
        """A PATH on which these programs come first."""
        return f"{self.programs}:{os.environ['PATH']}"

    def calls(self, program: str) -> list[list[str]]:
        """Arguments of every call of `program`, oldest first."""
        lines = [line.split("\x1f") for line in (self.folder / "calls").read_text().splitlines()]
        return [arguments for name, *arguments in lines if name == program]

    def set_state(
        self,
        key: str,
        state: str,
        *,
        reason: str = "None",
        nodes: str = "",
        exit_code: int = 0,
        restarts: int = 0,
    ) -> None:
        """What squeue says from now on of job `ID` or `ID_INDEX`; `state` in SLURM's words."""
        line = f"{key}|{state}|{reason}|{nodes}|{exit_code << 8}|{restarts}|\n"
        # Whole or not at all: squeue may look at any moment.
        temporary = self.folder / f"new-{key}"
        temporary.write_text(line)
        temporary.replace(self.folder / "jobs" / key)

    def set_job(self, state: str = "RUNNING", excluded: str = "(null)", restarts: str = "same") -> None:
        """What `scontrol show job` says from now on; "same" restarts: as the script's own variable has it."""
        (self.folder / "job").write_text(
            f"JobId=1 JobState={state} Restarts={restarts} ExcNodeList={excluded}\n"
        )

    def set_step(self, name: str, script: str) -> None:
        """What `srun` of `llmscale cluster NAME RUN` does: lines of bash, with the run folder in $RUN."""
        (self.folder / "steps" / name).write_text(script)

    def forget(self, key: str) -> None:
        """squeue knows the job no more, as some minutes after its end."""
        (self.folder / "jobs" / key).unlink(missing_ok=True)

    def refuse(self, program: str, message: str) -> None:
        """`program` fails with `message` from now on."""
        (self.folder / "refusals" / program).write_text(message + "\n")

    def accept(self, program: str) -> None:
        """`program` works again."""
        (self.folder / "refusals" / program).unlink(missing_ok=True)
