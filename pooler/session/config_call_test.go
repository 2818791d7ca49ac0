package session

import "testing"

func TestOnlyAPlainTrueMakesSetConfigLocal(t *testing.T) {
	check := func(text string, wantLocal, wantReads bool) {
		t.Helper()
		if local, reads := localConfig([]byte(text)); local != wantLocal || local && reads != wantReads {
			t.Errorf("%s: local %v, reads %v", text, local, reads)
		}
	}
	check("select set_config('app.tenant', $1, true)", true, false)
	check("SELECT pg_catalog.SET_CONFIG('app.tenant', coalesce($1, f(2, 3)), TRUE), set_config('role', 'x', true)", true, false)
	check("select set_config('search_path', $1, true)", true, true)
	check("select set_config($1, $2, true)", true, true)
	check("select set_config('app.' || $1, $2, true)", true, true)
	check("select set_config('app.tenant', $1, false)", false, false)
	check("select set_config('app.tenant', $1, not true)", false, false)
	check("select set_config('app.tenant', $1, $2)", false, false)
	check("select set_config('app.tenant', 'x', true), set_config('app.tenant', 'x', false)", false, false)
	check("select set_config('app.tenant', 'x', true), 'set_config'", false, false)
	check(`select "set_config"('app.tenant', 'x', true)`, false, false)
	check("select set_config(is_local => true, setting_name => 'a', new_value => 'b')", false, false)
	check("select set_config('a', 'b', true", false, false)
	check("select mine.set_config('a', 'b', true)", false, false)
	check("select set_config(variadic array['a', 'b', true])", false, false)
}
