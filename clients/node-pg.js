// node-pg through the pooler: named statements, a pool, and many queries at once.
'use strict'
const assert = require('assert')
const pg = require('pg')

let checks = 0
function check(what, got, want) {
  checks++
  assert.deepStrictEqual(got, want, what)
}

async function main() {
  const one = new pg.Client({ application_name: 'one' })
  const two = new pg.Client({ application_name: 'two' })
  await Promise.all([one.connect(), two.connect()])
  for (let n = 0; n < 30; n++) {
    for (const client of [one, two]) {
      const result = await client.query({ name: 'double', text: 'select $1::int * 2 as twice', values: [n] })
      check('prepared', result.rows[0].twice, 2 * n)
    }
  }
  for (let n = 0; n < 10; n++) {
    check('settings of one', (await one.query('show application_name')).rows[0].application_name, 'one')
    check('settings of two', (await two.query('show application_name')).rows[0].application_name, 'two')
  }
  const pool = new pg.Pool({ max: 20 })
  const answers = await Promise.all([...Array(500).keys()].map(n => pool.query('select $1::int as n', [n])))
  check('pool', answers.map(a => a.rows[0].n), [...Array(500).keys()])
  await pool.end()
  await one.query('drop table if exists node_pg')
  await one.query('create table node_pg (id int primary key)')
  await one.query('begin')
  await one.query('insert into node_pg values (1)')
  await one.query('commit')
  await one.query('begin')
  await one.query('insert into node_pg values (2)')
  await assert.rejects(one.query('insert into node_pg values (1)'), { code: '23505' })
  await one.query('rollback')
  check('transactions', (await two.query('select count(*)::int as n from node_pg')).rows[0].n, 1)
  const large = 'é'.repeat(1000000)
  check('large', (await two.query('select $1::text as large', [large])).rows[0].large, large)
  await Promise.all([one.end(), two.end()])
  console.log(`node-pg ${require('pg/package.json').version}: ${checks} checks`)
}

main().catch(err => { console.error('node-pg:', err); process.exit(1) })
