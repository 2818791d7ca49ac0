package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pitr/internal/postmaster"
)

// Relation is the name of a table in a database.
type Relation struct {
	Schema, Name string
}

func (r Relation) String() string { return quoteIdentifier(r.Schema) + "." + quoteIdentifier(r.Name) }

// ParseRelation reads schema.table as SQL does: what is not quoted is lower case, and "" stands for a quote within quotes.
func ParseRelation(text string) (Relation, error) {
	schema, rest, err1 := identifier(text)
	name, end, err2 := identifier(strings.TrimPrefix(rest, "."))
	if err1 != nil || err2 != nil || !strings.HasPrefix(rest, ".") || end != "" {
		return Relation{}, fmt.Errorf("%q is no name of a table: write schema.table, with quotes as in SQL where it has them", text)
	}
	return Relation{schema, name}, nil
}

var errNoIdentifier = errors.New("no identifier")

// identifier reads one identifier and returns what follows.
func identifier(text string) (name, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		at := strings.IndexAny(text, `."`)
		if at < 0 {
			at = len(text)
		}
		if at == 0 {
			return "", text, errNoIdentifier
		}
		return strings.ToLower(text[:at]), text[at:], nil
	}
	for i := 1; i < len(text); i++ {
		if text[i] != '"' {
			continue
		}
		if i+1 < len(text) && text[i+1] == '"' {
			i++
			continue
		}
		name := strings.ReplaceAll(text[1:i], `""`, `"`)
		if name == "" {
			return "", text, errNoIdentifier
		}
		return name, text[i+1:], nil
	}
	return "", text, errNoIdentifier
}

// identifierMax is NAMEDATALEN of src/include/pg_config_manual.h less its final zero.
const identifierMax = 63

// RestoredName is what a table is called that was brought back as it was at an instant. A long name is cut.
func RestoredName(name string, at time.Time) string {
	suffix := at.Format("_restored_20060102_1504")
	for len(name)+len(suffix) > identifierMax {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name + suffix
}

// renameTable is carried out in the scratch copy: it takes away what ties the table to others (foreign keys, triggers, rules, policies, statistics,
// parents), and gives new names to it and to what is named in its schema, so that a dump of it can be loaded beside the original.
const renameTable = `DO $pitr$
DECLARE
  t regclass := pg_catalog.to_regclass(%[1]s);
  old text := %[2]s;
  fresh text := %[3]s;
  r record;
  kind "char";
BEGIN
  SELECT relkind INTO kind FROM pg_catalog.pg_class WHERE oid = t;
  IF t IS NULL THEN RAISE EXCEPTION 'there is no table %% at the target', %[1]s; END IF;
  IF kind = 'p' THEN
    RAISE EXCEPTION '%% is partitioned: restore its partitions one by one: %%', %[1]s,
      (SELECT pg_catalog.string_agg(inhrelid::regclass::text, ', ') FROM pg_catalog.pg_inherits WHERE inhparent = t);
  END IF;
  IF kind <> 'r' THEN RAISE EXCEPTION '%% is no table', %[1]s; END IF;
  FOR r IN SELECT evtname FROM pg_catalog.pg_event_trigger LOOP EXECUTE pg_catalog.format('ALTER EVENT TRIGGER %%I DISABLE', r.evtname); END LOOP;
  FOR r IN SELECT inhparent::regclass AS parent, relispartition FROM pg_catalog.pg_inherits JOIN pg_catalog.pg_class c ON c.oid = inhrelid WHERE inhrelid = t LOOP
    IF r.relispartition THEN EXECUTE pg_catalog.format('ALTER TABLE %%s DETACH PARTITION %%s', r.parent, t);
    ELSE EXECUTE pg_catalog.format('ALTER TABLE %%s NO INHERIT %%s', t, r.parent); END IF;
  END LOOP;
  FOR r IN SELECT conname FROM pg_catalog.pg_constraint WHERE conrelid = t AND contype = 'f' LOOP EXECUTE pg_catalog.format('ALTER TABLE %%s DROP CONSTRAINT %%I', t, r.conname); END LOOP;
  FOR r IN SELECT tgname FROM pg_catalog.pg_trigger WHERE tgrelid = t AND NOT tgisinternal LOOP EXECUTE pg_catalog.format('DROP TRIGGER %%I ON %%s', r.tgname, t); END LOOP;
  FOR r IN SELECT rulename FROM pg_catalog.pg_rewrite WHERE ev_class = t LOOP EXECUTE pg_catalog.format('DROP RULE %%I ON %%s', r.rulename, t); END LOOP;
  FOR r IN SELECT polname FROM pg_catalog.pg_policy WHERE polrelid = t LOOP EXECUTE pg_catalog.format('DROP POLICY %%I ON %%s', r.polname, t); END LOOP;
  FOR r IN SELECT n.nspname, s.stxname FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = t LOOP
    EXECUTE pg_catalog.format('DROP STATISTICS %%I.%%I', r.nspname, r.stxname);
  END LOOP;
  EXECUTE pg_catalog.format('ALTER TABLE %%s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', t);
  FOR r IN
    SELECT 'ALTER TABLE ' || t || ' RENAME CONSTRAINT %%I TO %%I' AS command, conname AS name FROM pg_catalog.pg_constraint WHERE conrelid = t AND contype IN ('p', 'u', 'x')
    UNION ALL
    SELECT 'ALTER INDEX ' || pg_catalog.quote_ident(n.nspname) || '.%%I RENAME TO %%I', c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE i.indrelid = t AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conindid = c.oid AND conrelid = t)
    UNION ALL
    SELECT 'ALTER SEQUENCE ' || pg_catalog.quote_ident(n.nspname) || '.%%I RENAME TO %%I', c.relname FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = t AND d.deptype IN ('a', 'i')
  LOOP
    DECLARE
      next text := CASE WHEN pg_catalog.starts_with(r.name, old) THEN fresh || pg_catalog.substr(r.name, pg_catalog.length(old) + 1) ELSE fresh || '_' || r.name END;
    BEGIN
      IF pg_catalog.octet_length(next) > 63 THEN next := 'restored_' || pg_catalog.md5(fresh || '.' || r.name); END IF;
      CONTINUE WHEN next = r.name;
      EXECUTE pg_catalog.format(r.command, r.name, next);
    END;
  END LOOP;
  IF fresh <> old THEN EXECUTE pg_catalog.format('ALTER TABLE %%s RENAME TO %%I', t, fresh); END IF;
END $pitr$`

// RenameTable makes a table of a scratch copy ready to be dumped under another name.
func RenameTable(ctx context.Context, scratch *postmaster.Server, user, database string, table Relation, as string) error {
	sql := fmt.Sprintf(renameTable, quoteLiteral(table.String()), quoteLiteral(table.Name), quoteLiteral(as))
	if _, err := scratch.Query(ctx, user, database, sql); err != nil {
		// The statement is long, and what Postgres says of it is at the end.
		if at := strings.LastIndex(err.Error(), "ERROR:"); at >= 0 {
			err = errors.New(strings.TrimSpace(err.Error()[at+len("ERROR:"):]))
		}
		return fmt.Errorf("take %s out of the restored copy: %w", table, err)
	}
	return nil
}

// quoteLiteral writes a string for SQL. standard_conforming_strings may be off: a backslash makes it an escape string.
func quoteLiteral(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// Loading says where a table of a scratch copy goes.
type Loading struct {
	Install  *postmaster.Install
	Scratch  *postmaster.Server
	User     string // of the scratch copy
	From     string // its database
	Table    Relation
	DSN      string // of the running server
	Database string // its database
}

// Load dumps the table and loads it into the running database, in one transaction: all of it is there afterwards, or nothing.
func (l Loading) Load(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dump := l.Install.Command(ctx, "pg_dump", "-h", l.Scratch.Host(), "-p", strconv.Itoa(l.Scratch.Port), "-U", l.User, "-d", l.From, "--no-owner", "--no-privileges",
		"--no-tablespaces", "--no-publications", "--no-security-labels", "-t", l.Table.String())
	load := l.psql(ctx, "-q")
	var dumpErr, loadErr strings.Builder
	dump.Stderr, load.Stderr = &dumpErr, &loadErr
	content, err := dump.StdoutPipe()
	if err != nil {
		return err
	}
	input, err := load.StdinPipe()
	if err != nil {
		return err
	}
	if err := load.Start(); err != nil {
		return fmt.Errorf("run psql: %w", err)
	}
	if err := dump.Start(); err != nil {
		return errors.Join(fmt.Errorf("run pg_dump: %w", err), input.Close(), load.Wait())
	}
	_, err = io.WriteString(input, l.connect()+"BEGIN;\n")
	if err == nil {
		_, err = io.Copy(input, content)
	}
	if err != nil {
		cancel() // psql has ended, so that pg_dump would wait for ever
	}
	if waitErr := dump.Wait(); waitErr != nil && err == nil {
		err = fmt.Errorf("pg_dump: %w: %s", waitErr, strings.TrimSpace(dumpErr.String()))
	}
	if err == nil {
		_, err = io.WriteString(input, "COMMIT;\n") // without it what was loaded is rolled back
	}
	err = errors.Join(err, input.Close())
	if waitErr := load.Wait(); waitErr != nil && loadErr.Len() > 0 {
		return fmt.Errorf("load %s into database %s: %w: %s", l.Table, l.Database, waitErr, strings.TrimSpace(loadErr.String()))
	} else if waitErr != nil {
		err = errors.Join(err, waitErr)
	}
	if err != nil {
		return fmt.Errorf("load %s into database %s: %w", l.Table, l.Database, err)
	}
	return nil
}

// connect changes from the database of the DSN to the wanted one.
func (l Loading) connect() string {
	value := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(l.Database)
	return `\connect -reuse-previous=on "dbname='` + strings.ReplaceAll(value, `"`, `""`) + "'\"\n"
}

func (l Loading) psql(ctx context.Context, args ...string) *exec.Cmd {
	dsn, password := withoutPassword(l.DSN)
	cmd := l.Install.Command(ctx, "psql", append([]string{"-X", "-v", "ON_ERROR_STOP=1", "-d", dsn}, args...)...)
	if password != "" {
		cmd.Env = append(cmd.Env, "PGPASSWORD="+password)
	}
	return cmd
}

// withoutPassword takes the password out of a connection string: everybody may see the arguments of a process, and nobody else its environment.
func withoutPassword(dsn string) (rest, password string) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return keywordsWithoutPassword(dsn)
	}
	scheme, after, _ := strings.Cut(dsn, "://")
	address, query, _ := strings.Cut(after, "?")
	user, host, hasUser := strings.Cut(address, "@")
	name, secret, found := strings.Cut(user, ":")
	if hasUser && found {
		if plain, err := url.PathUnescape(secret); err == nil {
			address, password = name+"@"+host, plain
		}
	}
	var kept []string
	for parameter := range strings.SplitSeq(query, "&") {
		value, isPassword := strings.CutPrefix(parameter, "password=")
		if plain, err := url.PathUnescape(value); isPassword && err == nil {
			password = plain // the one in the query counts
		} else if parameter != "" {
			kept = append(kept, parameter)
		}
	}
	rest = scheme + "://" + address
	if len(kept) > 0 {
		rest += "?" + strings.Join(kept, "&")
	}
	return rest, password
}

// keywordsWithoutPassword does so with the other form, host=h password='it”s': conninfo_parse of src/interfaces/libpq/fe-connect.c. What cannot be
// read so stays as it is, for libpq to complain about.
func keywordsWithoutPassword(dsn string) (rest, password string) {
	for left := dsn; ; {
		left = strings.TrimLeft(left, conninfoBlanks)
		setting := left
		name, after, found := strings.Cut(left, "=")
		if !found {
			return strings.TrimSpace(rest + left), password
		}
		after = strings.TrimLeft(after, conninfoBlanks)
		value, behind := conninfoValue(after)
		left = behind
		if strings.TrimSpace(name) == "password" {
			password = value
			continue
		}
		rest += setting[:len(setting)-len(behind)] + " "
	}
}

const conninfoBlanks = " \t\n\r\f\v"

// conninfoValue reads a value, in quotes or up to a blank. A backslash takes the next character as it is.
func conninfoValue(text string) (value, rest string) {
	var content strings.Builder
	quoted := strings.HasPrefix(text, "'")
	i := 0
	if quoted {
		i = 1
	}
	for ; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			i++
			c = text[i]
		case quoted && c == '\'':
			return content.String(), text[i+1:]
		case !quoted && strings.IndexByte(conninfoBlanks, c) >= 0:
			return content.String(), text[i:]
		}
		content.WriteByte(c)
	}
	return content.String(), ""
}

// Ask runs a statement in the running database and returns its only value.
func (l Loading) Ask(ctx context.Context, sql string) (string, error) {
	cmd := l.psql(ctx, "-Atq")
	cmd.Stdin = strings.NewReader(l.connect() + sql + ";\n")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ask database %s: %w: %s", l.Database, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Check makes sure, before anything is restored, that the table can be loaded.
func (l Loading) Check(ctx context.Context) error {
	answer, err := l.Ask(ctx, fmt.Sprintf(`SELECT CASE WHEN n.oid IS NULL THEN 'there is no schema there' WHEN NOT pg_catalog.has_schema_privilege(n.oid, 'CREATE') THEN 'its user may not make tables in the schema'
		WHEN pg_catalog.to_regclass(%s) IS NOT NULL THEN 'it is there already; choose another name by --as' END FROM (VALUES (1)) v LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = %s`,
		quoteLiteral(l.Table.String()), quoteLiteral(l.Table.Schema)))
	if err == nil && answer != "" {
		err = errors.New(answer)
	}
	if err != nil {
		return fmt.Errorf("load %s into database %s: %w", l.Table, l.Database, err)
	}
	return nil
}

// Superuser is the name of the bootstrap superuser of a scratch copy that has no other connections: mostly postgres.
func Superuser(ctx context.Context, server *postmaster.Server) (string, error) {
	for _, candidate := range []string{"postgres", os.Getenv("POSTGRES_USER"), os.Getenv("PGUSER")} {
		if candidate == "" {
			continue
		}
		out, err := server.Query(ctx, candidate, "template1", "SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10")
		if err == nil && out != "" {
			return out, nil
		}
	}
	return "", errors.New("the restored copy has no role postgres; set PGUSER to one of its roles that may log in")
}
