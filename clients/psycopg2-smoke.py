"""psycopg2 through the pooler: simple queries in transactions that it begins by itself."""
import io
import psycopg2

checks = 0


def check(what, got, want):
    global checks
    checks += 1
    if got != want:
        raise SystemExit(f"psycopg2: {what}: got {got!r}, want {want!r}")


def value(conn, sql, *args):
    with conn.cursor() as cursor:
        cursor.execute(sql, args)
        return cursor.fetchone()[0]


def main():
    one, two = psycopg2.connect(""), psycopg2.connect("")
    for n in range(30):
        for conn in (one, two):
            check("query", value(conn, "select %s * 2", n), 2 * n)
            conn.commit()
    one.set_session(isolation_level="SERIALIZABLE", readonly=True)
    check("isolation", value(one, "show transaction_isolation"), "serializable")
    check("isolation of nobody else", value(two, "show transaction_isolation"), "read committed")
    one.rollback()
    one.set_session(isolation_level="READ COMMITTED", readonly=False)
    two.rollback()
    with one, one.cursor() as cursor:
        cursor.execute("drop table if exists psycopg2; create table psycopg2 (id int primary key)")
        cursor.execute("prepare add_one (int) as insert into psycopg2 values ($1)")
    for n in range(20):
        with one, one.cursor() as cursor:
            cursor.execute("execute add_one (%s)", (n,))
    try:
        with one, one.cursor() as cursor:
            cursor.execute("execute add_one (100)")
            cursor.execute("execute add_one (1)")
    except psycopg2.errors.UniqueViolation:
        pass
    check("transactions", value(two, "select count(*) from psycopg2"), 20)
    two.commit()
    with one, one.cursor() as cursor:
        cursor.copy_expert("copy psycopg2 from stdin", io.StringIO("".join(f"{n}\n" for n in range(1000, 2000))))
    out = io.StringIO()
    with two, two.cursor() as cursor:
        cursor.copy_expert("copy (select id from psycopg2 where id >= 1000 order by id) to stdout", out)
    check("copy", [int(n) for n in out.getvalue().split()], list(range(1000, 2000)))
    print(f"psycopg2 {psycopg2.__version__.split()[0]}: {checks} checks")


main()
