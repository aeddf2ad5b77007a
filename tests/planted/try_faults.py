"""Try planted faults, and print which tests catch them as the table of docs/reliability.md.

Run it with ``make planted``, or ``make planted NAME="'sign of M'"`` for one of them. It fails if a
fault is missed, or if a test that should catch one fails without it.
"""

import sys

import click
import planted


@click.command()
@click.argument("names", nargs=-1)
def main(names):
    faults = [fault for fault in planted.read_faults() if not names or fault.name in names]
    with planted.copy_of_project() as folder:
        every = sorted({test for fault in faults for test in fault.caught_by})
        wrong = {test: found for test, found in planted.run_tests(folder, every).items() if found}
    click.echo("| room | fault: what it does to a user's numbers | caught by | seconds |")
    click.echo("|---|---|---|---|")
    for fault in faults:
        missed, seconds = planted.try_fault(fault)
        room, name, effect, tests = planted.row_of(fault)
        click.echo(f"| {room} | {name}: {effect} | {tests} | {seconds:.0f} |")
        wrong |= {f"{fault.name}, {test}": found for test, found in missed.items()}
    for what, found in wrong.items():
        click.echo(f"{what}: {found}", err=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
