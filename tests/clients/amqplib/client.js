// amqplib; it reconnects by hand, to the next node that takes it. Arguments and talk are those of ../stage.py.
'use strict'
const assert = require('node:assert')
const readline = require('node:readline')
const amqplib = require('amqplib')

const [first, second, queue] = process.argv.slice(2)
const bodies = Array.from({ length: 20 }, (_, n) => `m${String(n).padStart(2, '0')}`)
const after = Array.from({ length: 10 }, (_, n) => `after-${n}`)
const prefetch = 4
const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const ok = step => console.log(`ok ${step}`)
const nap = ms => new Promise(resolve => setTimeout(resolve, ms))

async function kill () {
  console.log('kill')
  assert.strictEqual((await input.next()).value, 'killed')
}

async function connect () {
  for (let n = 0; ; n++) {
    try {
      const connection = await amqplib.connect(`amqp://guest:guest@${n % 2 ? second : first}/%2F`)
      connection.on('error', () => {})
      return connection
    } catch (error) {
      await nap(50)
    }
  }
}

function publish (channel, body, key = queue) {
  return new Promise((resolve, reject) => {
    channel.once('close', () => reject(new Error('closed')))
    channel.publish('', key, Buffer.from(body), { persistent: true, mandatory: true }, error => error ? reject(error) : resolve())
  })
}

// What came, and the means to wait for more.
async function consumer (connection, limit) {
  const channel = await connection.createChannel()
  channel.on('error', () => {})
  channel.setMaxListeners(0)
  await channel.prefetch(limit)
  const taken = []
  let wake = () => {}
  channel.on('close', () => wake())
  await channel.consume(queue, message => { taken.push(message); wake() })
  const arrived = async number => {
    while (taken.length < number) await new Promise(resolve => { wake = resolve })
    return taken
  }
  return { channel, taken, arrived }
}

async function confirming (connection) {
  const channel = await connection.createConfirmChannel()
  channel.on('error', () => {})
  channel.setMaxListeners(0)
  return channel
}

const seen = messages => messages.map(message => [message.content.toString(), message.fields.redelivered])

async function ordinary (connection) {
  const out = await confirming(connection)
  const returned = []
  out.on('return', message => returned.push(message.fields.replyCode))
  for (const body of bodies) await publish(out, body)
  assert.deepStrictEqual(returned, [])
  ok('confirm')
  await publish(out, 'lost', `nobody-${queue}`)
  assert.deepStrictEqual(returned, [312])
  ok('return')

  const { channel, arrived } = await consumer(connection, prefetch)
  const taken = await arrived(prefetch)
  const { messageCount } = await out.checkQueue(queue)
  assert.deepStrictEqual([taken.length, messageCount], [prefetch, bodies.length - prefetch])
  ok('prefetch')
  channel.nack(taken[0], false, true)
  for (let done = 1; done <= bodies.length; done++) {
    await arrived(Math.min(prefetch + done, bodies.length + 1))
    channel.ack(taken[done])
  }
  const fresh = bodies.map(body => [body, false])
  assert.deepStrictEqual(seen(taken), [...fresh.slice(0, prefetch), [bodies[0], true], ...fresh.slice(prefetch)])
  ok('requeue')

  await publish(out, 'held')
  await arrived(bodies.length + 2)
}

async function reconnected (left) {
  const connection = await connect()
  const lost = new Promise((resolve, reject) => connection.on('close', () => reject(new Error('lost'))))
  lost.catch(() => {})
  const { channel, taken, arrived } = await consumer(connection, 0)
  const out = await confirming(connection)
  while (left.length) {
    await publish(out, left[0])
    left.shift()
  }
  const missing = () => ['held', ...after].some(body => !seen(taken).some(([text]) => text === body))
  while (missing()) await Promise.race([arrived(taken.length + 1), lost])
  // What the dead node held comes when the leader is sure that it is gone: the others need not wait for it.
  assert(seen(taken).some(([body, redelivered]) => body === 'held' && redelivered))
  const fresh = seen(taken).filter(([, redelivered]) => !redelivered).map(([body]) => body)
  assert.deepStrictEqual([...new Set(fresh)], after)
  channel.ackAll()
  await channel.checkQueue(queue) // the acknowledgement is heard
  await connection.close()
}

async function main () {
  await ordinary(await connect())
  await kill()
  const left = [...after]
  for (let done = false; !done;) {
    try {
      await reconnected(left)
      done = true
    } catch (error) {
      if (error instanceof assert.AssertionError) throw error
    }
  }
  ok('reconnect')
  process.exit(0)
}

main().catch(error => { console.error(error); process.exit(1) })
