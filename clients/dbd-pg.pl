# DBD::Pg through the pooler: server-side prepare is its default, by Parse under names of its own.
use strict;
use warnings;
use DBI;

my $checks = 0;
sub check {
    my ($what, $got, $want) = @_;
    $checks++;
    die "DBD::Pg: $what: got $got, want $want\n" unless $got eq $want;
}

my ($one, $two) = map { DBI->connect("dbi:Pg:application_name=$_", undef, undef, {RaiseError => 1, PrintError => 0}) } qw(one two);
$_->{pg_switch_prepared} = 1 for $one, $two;
my @statements = map { $_->prepare('select ?::int * 2') } $one, $two;
for my $n (0 .. 29) {
    for my $statement (@statements) {
        $statement->execute($n);
        check('prepared', $statement->fetchrow_array, 2 * $n);
    }
}
for (1 .. 10) {
    check('settings of one', $one->selectrow_array('show application_name'), 'one');
    check('settings of two', $two->selectrow_array('show application_name'), 'two');
}
$one->do('set client_min_messages = warning');
$one->do('drop table if exists dbd_pg');
$one->do('create table dbd_pg (id int primary key)');
$one->begin_work;
$one->do('insert into dbd_pg values (?)', undef, 1);
$one->commit;
$one->begin_work;
$one->do('insert into dbd_pg values (?)', undef, 2);
my $accepted = eval { $one->do('insert into dbd_pg values (?)', undef, 1) };
check('duplicate key', !$accepted && $@ =~ /violates unique constraint/ ? 'refused' : 'accepted', 'refused');
$one->rollback;
check('transactions', $two->selectrow_array('select count(*) from dbd_pg'), 1);
$one->do('copy dbd_pg from stdin');
$one->pg_putcopydata("$_\n") for 10 .. 1009;
$one->pg_putcopyend;
check('copy', $two->selectrow_array('select sum(id) from dbd_pg where id >= 10'), (10 + 1009) * 500);
undef @statements;
$_->disconnect for $one, $two;
print "DBD::Pg $DBD::Pg::VERSION: $checks checks\n";
