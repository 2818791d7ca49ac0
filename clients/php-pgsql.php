<?php
// php-pgsql through the pooler: pg_prepare, and PDO, whose statements are prepared by Parse and closed by DEALLOCATE.
$checks = 0;
function check($what, $got, $want) {
    global $checks;
    $checks++;
    if ($got !== $want) {
        fwrite(STDERR, "php-pgsql: $what: got " . var_export($got, true) . ', want ' . var_export($want, true) . "\n");
        exit(1);
    }
}

$one = pg_connect("application_name=one", PGSQL_CONNECT_FORCE_NEW);
$two = pg_connect("application_name=two", PGSQL_CONNECT_FORCE_NEW);
foreach ([$one, $two] as $conn) {
    check('prepare', pg_prepare($conn, 'double', 'select $1::int * 2') !== false, true);
}
for ($n = 0; $n < 30; $n++) {
    foreach ([$one, $two] as $conn) {
        check('prepared', pg_fetch_result(pg_execute($conn, 'double', [$n]), 0, 0), (string)(2 * $n));
    }
}
for ($n = 0; $n < 10; $n++) {
    check('settings of one', pg_fetch_result(pg_query($one, 'show application_name'), 0, 0), 'one');
    check('settings of two', pg_fetch_result(pg_query($two, 'show application_name'), 0, 0), 'two');
}
pg_query($one, 'drop table if exists php_pgsql; create table php_pgsql (id int primary key)');
pg_query($one, 'begin');
pg_query_params($one, 'insert into php_pgsql values ($1)', [1]);
pg_query($one, 'commit');
pg_query($one, 'begin');
pg_query_params($one, 'insert into php_pgsql values ($1)', [2]);
check('duplicate key', @pg_query_params($one, 'insert into php_pgsql values ($1)', [1]), false);
pg_query($one, 'rollback');
check('transactions', pg_fetch_result(pg_query($two, 'select count(*) from php_pgsql'), 0, 0), '1');
check('copy in', pg_copy_from($one, 'php_pgsql', array_map(fn ($n) => "$n\n", range(10, 1009))), true);
check('copy out', count(pg_copy_to($two, 'php_pgsql')), 1001);

$pdo = new PDO('pgsql:host=' . getenv('PGHOST') . ';port=' . getenv('PGPORT') . ';dbname=' . getenv('PGDATABASE'), getenv('PGUSER'), getenv('PGPASSWORD'));
$pdo->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION);
for ($n = 0; $n < 30; $n++) {
    $statement = $pdo->prepare('select ?::int * 3');
    $statement->execute([$n]);
    check('PDO', $statement->fetchColumn(), 3 * $n);
    unset($statement); // DEALLOCATE
}
$pdo->beginTransaction();
$pdo->exec('delete from php_pgsql');
$pdo->rollBack();
check('PDO transactions', $pdo->query('select count(*) from php_pgsql')->fetchColumn(), 1001);
echo 'php-pgsql ' . PHP_VERSION . ": $checks checks\n";
