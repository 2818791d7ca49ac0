"""psycopg 3 through the pooler: prepared statements are its default from the fifth execution on."""
import os
import psycopg

checks = 0


def check(what, got, want):
    global checks
    checks += 1
    if got != want:
        raise SystemExit(f"psycopg: {what}: got {got!r}, want {want!r}")


def main():
    one, two = psycopg.connect(autocommit=True, application_name="one"), psycopg.connect(autocommit=True, application_name="two")
    for n in range(30):
        for conn in (one, two):
            check("prepared", conn.execute("select %s::int * 2, %s::text", (n, "x" * n), prepare=True).fetchone(), (2 * n, "x" * n))
    for n in range(10):
        check("settings of one", one.execute("show application_name").fetchone(), ("one",))
        check("settings of two", two.execute("show application_name").fetchone(), ("two",))
    one.execute("set work_mem = '7MB'")
    for n in range(10):
        check("set", one.execute("show work_mem").fetchone(), ("7MB",))
        check("set of nobody else", two.execute("show work_mem").fetchone()[0] != "7MB", True)
    one.execute("drop table if exists psycopg")
    one.execute("create table psycopg (id int primary key, text text)")
    with one.transaction():
        one.execute("insert into psycopg values (1, 'kept')")
    try:
        with one.transaction():
            one.execute("insert into psycopg values (2, 'taken back')")
            one.execute("insert into psycopg values (1, 'twice')")
    except psycopg.errors.UniqueViolation:
        pass
    check("transactions", two.execute("select count(*) from psycopg").fetchone(), (1,))
    with one.cursor().copy("copy psycopg from stdin") as copy:
        for n in range(10, 1010):
            copy.write_row((n, f"row {n}"))
    with two.cursor().copy("copy (select id from psycopg where id >= 10 order by id) to stdout") as copy:
        check("copy", [int(row) for row in b"".join(copy).split()], list(range(10, 1010)))
    with one.pipeline():
        cursors = [one.execute("select %s::int", (n,)) for n in range(100)]
        check("pipeline", [c.fetchone()[0] for c in cursors], list(range(100)))
    with one.transaction(), one.cursor(name="walk") as cursor:
        cursor.execute("select generate_series(1, 5000)")
        check("cursor", sum(row[0] for row in cursor), 5000 * 5001 // 2)
    large = "é" * 1_000_000
    check("large", one.execute("select %s::text", (large,)).fetchone()[0], large)
    print(f"psycopg {psycopg.__version__}: {checks} checks")


main()
