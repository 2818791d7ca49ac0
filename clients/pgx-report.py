"""Compares the outcome of pgx's tests, as go test -json tells it, with the list of those that cannot pass."""
import json
import sys


def main():
    mode, outcome, exceptions = sys.argv[1:]
    listed = {}
    for line in open(exceptions):
        line = line.strip()
        if line and not line.startswith("#"):
            modes, test, reason = line.split(None, 2)
            if mode in modes.split(","):
                listed[test] = reason
    results, output, broken = {}, {}, []
    for line in open(outcome):
        event = json.loads(line)
        package = event.get("Package", "").removeprefix("github.com/jackc/pgx/v5").strip("/") or "pgx"
        if "Test" not in event:
            if event["Action"] == "fail":
                broken.append(package)
            continue
        test = package + "." + event["Test"]
        if event["Action"] == "output":
            output.setdefault(test, []).append(event["Output"])
        elif event["Action"] in ("pass", "fail", "skip"):
            results[test] = event["Action"]
    tops = {test: result for test, result in results.items() if "/" not in test}
    failed = sorted(test for test, result in tops.items() if result == "fail")
    unexpected = [test for test in failed if test not in listed]
    wrong = sorted(test for test in listed if tops.get(test) == "pass")
    unheard = [package for package in broken if not any(test.startswith(package + ".") for test in failed)]
    for test in unexpected:
        print(f"--- {mode}: {test}")
        for name in sorted(output):
            if name == test or name.startswith(test + "/"):
                sys.stdout.write("".join(output[name][-12:]))
    for test in wrong:
        print(f"{mode}: {test} is listed as one that cannot pass, and has passed")
    for package in unheard:
        print(f"{mode}: package {package} has failed without a test that has")
    count = lambda result: sum(1 for r in tops.values() if r == result)
    print(f"pgx in {mode} mode: {count('pass')} tests pass, {count('skip')} are skipped by pgx itself, {len(failed)} fail, of which {len(failed) - len(unexpected)} are listed")
    if unexpected or wrong or unheard or not tops:
        raise SystemExit(1)


main()
