package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tableSetup makes a table of everything that a table may have.
const tableSetup = `
create type mood as enum ('sad', 'ok');
create table customers (id int primary key);
insert into customers values (1), (2);
create function touch() returns trigger language plpgsql as 'begin raise exception ''a trigger has fired''; end';
create table orders (id serial primary key, customer int references customers, total numeric check (total >= 0), placed timestamptz default now(),
	feeling mood default 'ok', net numeric generated always as (total / 2) stored, number int generated always as identity unique,
	"Mixed ""Note""" text, constraint "Odd Name" unique (id, total));
create index on orders (placed);
create index "a very long name of an index, so that nothing may be put before" on orders (customer) where total > 5;
create statistics orders_stats on customer, total from orders;
alter table orders enable row level security; alter table orders force row level security; create policy p on orders using (false);
insert into orders (customer, total, "Mixed ""Note""") select 1 + i % 2, i, 'it''s \ ' || i from generate_series(1, 500) i;
create trigger t before insert or update on orders for each row execute function touch();
create schema "Other Schema";
create table "Other Schema"."Quoted.Table" (a int);
insert into "Other Schema"."Quoted.Table" values (1), (2), (3);
create table parent (i int) partition by range (i);
create table part_one partition of parent for values from (0) to (10);
insert into parent values (5);
create table named (i int);
`

// TestATableIsBroughtBackBesideWhatIsThere drops and changes tables and brings them back into the running database.
func TestATableIsBroughtBackBesideWhatIsThere(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	h.start(ctx, "archiver")
	h.psql(ctx, tableSetup)
	h.eventually(ctx, "the archive knows the names", func() bool {
		_, err := h.pitr(ctx, "log", "--rel", "public.named")
		return err == nil
	})
	h.mustPitr(ctx, "backup")
	instant := h.psql(ctx, "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'")
	h.psql(ctx, "alter table orders disable trigger t; delete from orders where id > 10; update orders set total = 0")
	h.archived(ctx)
	scratch := filepath.Join(h.dir, "scratch")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.install.Own(scratch); err != nil {
		t.Fatal(err)
	}
	table := func(args ...string) (string, error) {
		out, err := h.pitr(ctx, append([]string{"restore", "table", "--into-database", "postgres", "--scratch", scratch}, args...)...)
		left, dirErr := os.ReadDir(scratch)
		if dirErr != nil || len(left) > 0 {
			t.Errorf("%q: the scratch copy is still there: %v (%v)", args, left, dirErr)
		}
		return out, err
	}
	out, err := table("public.orders", "--to", instant)
	if err != nil {
		t.Fatal(err)
	}
	name := "orders_restored_" + strings.NewReplacer("-", "", ":", "", " ", "_").Replace(instant[:16])
	if !strings.Contains(out, `500 rows, as "public"."`+name+`" into database postgres`) {
		t.Errorf("it says\n%s", out)
	}
	equal := func(sql, want string) {
		t.Helper()
		if got := h.psql(ctx, strings.ReplaceAll(sql, "COPY", name)); got != want {
			t.Errorf("%s is %q, want %q", sql, got, want)
		}
	}
	equal(`select count(*), sum(total), sum(net), max(number), min("Mixed ""Note"""), max(feeling) from COPY`, `500|125250|62625.00000000000000000000|500|it's \ 1|ok`)
	equal("select count(*) from orders", "10")
	equal("select string_agg(contype::text, '' order by contype) from pg_constraint where conrelid = 'COPY'::regclass and contype <> 'n'", "cpuu")
	equal("select count(*) from pg_index where indrelid = 'COPY'::regclass", "5")
	equal("select count(*) from pg_trigger where tgrelid = 'COPY'::regclass", "0")
	equal("select relrowsecurity or relforcerowsecurity from pg_class where oid = 'COPY'::regclass", "f")
	// Its sequences are its own, and go on where they were.
	equal("insert into COPY (total) values (1) returning id, number", "501|501")
	equal("select pg_get_serial_sequence('COPY', 'id') = pg_get_serial_sequence('orders', 'id')", "f")
	equal("insert into COPY (total) select -1 where false; select nextval(pg_get_serial_sequence('orders', 'id'))", "501")

	if _, err := table("public.orders", "--to", instant, "--as", "customers"); err == nil || !strings.Contains(err.Error(), "it is there already; choose another name by --as") {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := table("public.nobody", "--to", instant); err == nil || !strings.Contains(err.Error(), "there is no table") {
		t.Errorf("a table that is not there: %v", err)
	}
	if _, err := table("public.parent", "--to", instant); err == nil || !strings.Contains(err.Error(), "is partitioned: restore its partitions one by one: part_one") {
		t.Errorf("a partitioned table: %v", err)
	}
	if _, err := table("public.part_one", "--to", instant, "--as", "only_part"); err != nil {
		t.Error(err)
	}
	equal("select i from only_part", "5")
	if _, err := table(`"Other Schema"."Quoted.Table"`, "--to", instant, "--as", "Quoted.Again"); err != nil {
		t.Error(err)
	}
	equal(`select count(*) from "Other Schema"."Quoted.Again"`, "3")

	// What cannot be loaded leaves nothing: its type is gone.
	h.psql(ctx, "drop table orders, "+name+" cascade; drop type mood cascade")
	h.archived(ctx)
	if _, err := table("public.orders", "--to", instant, "--as", "orders"); err == nil || !strings.Contains(err.Error(), "public.mood") {
		t.Errorf("a table whose type is gone: %v", err)
	}
	equal("select to_regclass('orders') is null, to_regclass('orders_id_seq') is null", "t|t")
	h.psql(ctx, "create type mood as enum ('sad', 'ok')")
	h.eventually(ctx, "the archive knows of the drop", func() bool {
		_, err := h.pitr(ctx, "restore", "--before-drop", "public.orders", "--dry-run")
		return err == nil
	})
	if _, err := table("public.orders", "--before-drop", "public.orders", "--as", "orders"); err != nil {
		t.Error(err)
	}
	equal("select count(*), max(total) from orders", "10|0")
	h.interruptedTable(ctx, scratch, instant)
}

// interruptedTable ends a restore of a table by a signal, once its copy is there.
func (h *harness) interruptedTable(ctx context.Context, scratch, instant string) {
	h.t.Helper()
	cmd := h.install.Command(context.Background(), h.bin.plain, "-c", h.config, "restore", "table", "public.customers", "--to", instant, "--into-database", "postgres", "--scratch", scratch, "--as", "interrupted")
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.eventually(ctx, "the copy is started", func() bool {
		found, err := filepath.Glob(filepath.Join(scratch, "*/data/postmaster.pid"))
		return err == nil && len(found) > 0
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		h.t.Error("it was interrupted, and says that it succeeded")
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		h.t.Errorf("left are %v (%v)", left, err)
	}
	if out, err := exec.CommandContext(ctx, "pgrep", "-f", scratch).Output(); err == nil {
		h.t.Errorf("processes are left: %s", out)
	}
	if got := h.psql(ctx, "select to_regclass('interrupted') is null"); got != "t" {
		h.t.Error("the table is there")
	}
}
