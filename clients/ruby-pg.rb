# ruby-pg through the pooler: named statements, transactions, COPY.
require 'pg'

$checks = 0
def check(what, got, want)
  $checks += 1
  abort "ruby-pg: #{what}: got #{got.inspect}, want #{want.inspect}" unless got == want
end

one = PG.connect(application_name: 'one')
two = PG.connect(application_name: 'two')
[one, two].each { |conn| conn.prepare('double', 'select $1::int * 2') }
30.times do |n|
  [one, two].each { |conn| check('prepared', conn.exec_prepared('double', [n]).getvalue(0, 0), (2 * n).to_s) }
end
10.times do
  check('settings of one', one.exec('show application_name').getvalue(0, 0), 'one')
  check('settings of two', two.exec('show application_name').getvalue(0, 0), 'two')
end
one.exec('drop table if exists ruby_pg; create table ruby_pg (id int primary key)')
one.transaction { |conn| conn.exec_params('insert into ruby_pg values ($1)', [1]) }
begin
  one.transaction do |conn|
    conn.exec_params('insert into ruby_pg values ($1)', [2])
    conn.exec_params('insert into ruby_pg values ($1)', [1])
  end
  abort 'ruby-pg: a duplicate key was accepted'
rescue PG::UniqueViolation
  check('transactions', two.exec('select count(*) from ruby_pg').getvalue(0, 0), '1')
end
one.copy_data('copy ruby_pg from stdin') { (10..1009).each { |n| one.put_copy_data("#{n}\n") } }
rows = []
two.copy_data('copy (select id from ruby_pg where id >= 10 order by id) to stdout') do
  while (row = two.get_copy_data)
    rows << row.to_i
  end
end
check('copy', rows, (10..1009).to_a)
check('describe', one.describe_prepared('double').ftype(0), 23)
one.exec('deallocate double')
begin
  one.exec_prepared('double', [1])
  abort 'ruby-pg: a statement that was deallocated could be executed'
rescue PG::InvalidSqlStatementName
  check('deallocate', two.exec_prepared('double', [21]).getvalue(0, 0), '42')
end
puts "ruby-pg #{PG::VERSION}: #{$checks} checks"
