package pooler

import (
	"os"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pitr/pooler/protocoltest"
)

// TestRandomScriptsGetTheAnswersOfPostgres plays scripts that nobody has written. PITR_RANDOM_SECONDS makes it go on for longer.
func TestRandomScriptsGetTheAnswersOfPostgres(t *testing.T) {
	c := newConformance(t)
	seed := seedOf(t)
	defer c.disturb(t, seed)()
	seconds := 6
	if text := os.Getenv("PITR_RANDOM_SECONDS"); text != "" {
		seconds, _ = strconv.Atoi(text)
	}
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	played, steps, failing := 0, 0, false
	for played == 0 || time.Now().Before(deadline) {
		rapid.Check(t, func(t *rapid.T) {
			if !failing && time.Now().After(deadline) {
				return
			}
			script := &protocoltest.Script{Login: map[string]string{}, Exceptions: randomExceptions, Steps: drawScript(t)}
			played, steps = played+1, steps+len(script.Steps)
			if problems := c.compare(script, seed); len(problems) > 0 {
				failing = true // shrinking may take what it takes
				t.Fatal(problems[0])
			}
		})
	}
	t.Logf("%d scripts of %d steps in %d modes", played, steps, len(c.poolers))
}

// randomExceptions hold for scripts that nobody has looked at.
var randomExceptions = []protocoltest.Exception{
	{Kind: "texts", Modes: []string{"shared"}, Reason: "names of statements in what is said of Bind are the server's"},
	{Kind: "codes", Modes: []string{"shared"}, Reason: "decision 2: what is said of Parse in a transaction that has failed"},
}

var randomTexts = []string{
	"select 1", "select 'two', 2", "select i, s from three order by i", "select generate_series(1, 5)", "", "select 1/0", "selec", "select * from nowhere",
	"insert into empty values (1, 'x')", "insert into empty values (2, 'y') returning i", "delete from empty", "select count(*) from empty",
	"begin", "begin", "commit", "rollback", "start transaction", "savepoint a", "rollback to a", "release a", "begin; select 1", "select 1; commit",
	"select 1; select 2", "select 1; select 1/0; select 3", "begin; insert into empty values (3, 'z'); commit; select 1/0",
	"set work_mem = '7MB'", "set local work_mem = '8MB'", "show work_mem", "set timezone = 'Asia/Tokyo'", "set local timezone = 'Asia/Kabul'", "show timezone",
	"reset work_mem", "set my.mark = 'x'", "set role pg_monitor", "reset role", "select current_user", "set datestyle = 'German'", "select date '2020-01-02'",
	"copy three to stdout", "drop table if exists nowhere", "set work_mem = 'nonsense'",
	"do $$ begin raise notice 'loud'; end $$", "declare c cursor for select i from three order by i", "fetch 1 from c", "close c",
	"lock table empty", "explain (costs off) select 1", "values (1), (2)",
}

// drawScript draws what a client may send. Batches end before a simple query or a function call, and the client reads after each
// batch that may have failed, which is all that is asked of it: what an unnamed statement is after a batch that has failed is a limit
// that is documented in decision 2, and so is what is said of Parse and Describe in a transaction that has failed.
func drawScript(t *rapid.T) []protocoltest.Step {
	text := rapid.SampledFrom(randomTexts)
	names := rapid.SampledFrom([]string{"", "", "s1", "s2", "pitr_1"})
	var steps []protocoltest.Step
	add := func(format string, args ...any) { steps = append(steps, protocoltest.Must(format, args...)) }
	for range rapid.IntRange(1, 12).Draw(t, "steps") {
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0, 1, 2:
			add("Q %q", text.Draw(t, "text"))
			if rapid.Bool().Draw(t, "read") {
				add("until Z")
			}
		case 3, 4, 5:
			batch(t, add, text, names)
		case 6:
			for range rapid.IntRange(1, 3).Draw(t, "depth") {
				batch(t, add, text, names)
			}
		case 7:
			drawCopy(t, add)
		case 8:
			add("%s", rapid.SampledFrom([]string{"F 177 1 2", "F 154 1 0", "F 871 \"loud\"", "F 99999999", "S", "H", "times 3 S"}).Draw(t, "other"))
		case 9:
			add("d %q", "data where no COPY is")
			add("c")
		}
	}
	add("S")
	return steps
}

// batch draws messages of the extended protocol up to a Sync.
func batch(t *rapid.T, add func(string, ...any), text, names *rapid.Generator[string]) {
	name := names.Draw(t, "name")
	portal := rapid.SampledFrom([]string{"", "", "p1"}).Draw(t, "portal")
	for range rapid.IntRange(1, 6).Draw(t, "messages") {
		switch rapid.IntRange(0, 7).Draw(t, "message") {
		case 0, 1, 2:
			if name != "" && rapid.Bool().Draw(t, "again") {
				add("C S %q", name)
			}
			add("P %q %q", name, text.Draw(t, "text"))
			add("B %q %q", portal, name)
			add("E %q %d", portal, rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(t, "rows"))
		case 3:
			add("D P %q", portal)
		case 4:
			add("C %s %q", rapid.SampledFrom([]string{"S", "P"}).Draw(t, "object"), names.Draw(t, "name"))
		case 5:
			add("H")
		case 6:
			add("E %q", portal)
		case 7:
			if name != "" {
				add("B %q %q", portal, name)
				add("E %q", portal)
			}
		}
	}
	add("S")
	if rapid.Bool().Draw(t, "read") {
		add("until Z")
	}
}

func drawCopy(t *rapid.T, add func(string, ...any)) {
	extended := rapid.Bool().Draw(t, "extended")
	if extended {
		add("P %q %q", "", "copy empty from stdin")
		add("B %q %q", "", "")
		add("E %q", "")
	} else {
		add("Q %q", rapid.SampledFrom([]string{"copy empty from stdin", "select 1; copy empty from stdin; select 2"}).Draw(t, "copy"))
	}
	if rapid.Bool().Draw(t, "wait") {
		if extended {
			add("H")
		}
		add("until GE")
	}
	for range rapid.IntRange(0, 3).Draw(t, "rows") {
		add("d %q", rapid.SampledFrom([]string{"11\tx\n", "12\ty\n", "wrong\n"}).Draw(t, "row"))
	}
	add("%s", rapid.SampledFrom([]string{"c", "c", "f \"no\""}).Draw(t, "end"))
	if extended {
		add("S")
	}
}
