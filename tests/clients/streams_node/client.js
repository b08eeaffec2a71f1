// rabbitmq-stream-js-client: what it shows on a cluster of several nodes. Arguments: the stream addresses (host:port) of the nodes.
// It prints `ok STEP` for what it has shown and `kill HOST:PORT` for the node that shall be killed; it reads `killed` when that is done.
"use strict"

const assert = require("node:assert/strict")
const readline = require("node:readline")
const rabbit = require("rabbitmq-stream-js-client")
const { CompressionType } = require("rabbitmq-stream-js-client/dist/compression")

const NODES = process.argv.slice(2)
const PATIENCE = 60_000 // milliseconds
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const ok = (step) => console.log("ok " + step)
const numbers = (prefix, first, last) => Array.from({ length: last - first }, (_, n) => prefix + (first + n))

const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()

async function kill(node) {
  console.log("kill " + node)
  assert.equal((await input.next()).value, "killed")
}

async function until(condition, what) {
  const end = Date.now() + PATIENCE
  while (!condition()) {
    if (Date.now() > end) throw new Error("waited in vain: " + what())
    await pause(20)
  }
}

async function connect(node, listeners = {}) {
  const [hostname, port] = node.split(":")
  return rabbit.connect({ hostname, port: Number(port), username: "guest", password: "guest", vhost: "/", listeners })
}

// A client of the first node, from `at` on, that takes it.
async function connectSomewhere(at) {
  for (let n = at; ; n++) {
    try {
      return await connect(NODES[n % NODES.length])
    } catch (error) {
      if (n > at + 2000) throw error
      await pause(50)
    }
  }
}

// Publishes all of them and waits until each is confirmed.
async function publish(publisher, bodies, options = () => ({})) {
  const confirmed = new Set()
  const refused = []
  publisher.on("publish_confirm", (error, ids) => (error ? refused.push(error) : ids.forEach((id) => confirmed.add(id))))
  for (const body of bodies) await publisher.send(Buffer.from(body), options(body))
  await publisher.flush()
  await until(() => confirmed.size >= bodies.length, () => `${confirmed.size} of ${bodies.length} confirms`)
  assert.deepEqual(refused, [])
}

const said = (message) => message.content.toString()

async function read(client, stream, count, more = {}) {
  const got = []
  await client.declareConsumer({ stream, offset: rabbit.Offset.first(), ...more }, (message) => void got.push(message))
  await until(() => got.length >= count, () => `${got.length} of ${count} messages of ${stream}`)
  return got
}

async function confirm() {
  const [one, two] = [await connect(NODES[0]), await connect(NODES[1])]
  const stream = "node-confirm"
  await one.createStream({ stream, arguments: { "max-age": "7D" } })
  const publisher = await one.declarePublisher({ stream, publisherRef: "p" })
  const bodies = numbers("m", 0, 300)
  const properties = (body) => ({ messageProperties: { messageId: body }, applicationProperties: { of: body } })
  await publish(publisher, bodies, properties)
  assert.equal(await publisher.getLastPublishingId(), 300n)
  const got = await read(two, stream, 300)
  assert.deepEqual(got.map(said), bodies)
  assert.deepEqual(got.map((message) => message.offset), bodies.map((_, n) => BigInt(n)))
  const last = got[299]
  assert.deepEqual([last.messageProperties.messageId, last.applicationProperties.of], ["m299", "m299"])
  const tail = await read(two, stream, 10, { offset: rabbit.Offset.offset(290n) })
  assert.deepEqual(tail.map(said).slice(0, 10), bodies.slice(290))
  await one.close()
  await two.close()
  ok("confirm")
}

async function filter() {
  const client = await connect(NODES[0])
  const stream = "node-filter"
  await client.createStream({ stream })
  const region = (message) => message.applicationProperties?.region
  const publisher = await client.declarePublisher({ stream }, region)
  for (const [wave, where] of [["a", "eu"], ["b", "us"], ["c", undefined]]) {
    await publish(publisher, numbers(wave, 0, 20), () => (where ? { applicationProperties: { region: where } } : {}))
  }
  const wants = (values, matchUnfiltered) => ({ values, matchUnfiltered, postFilterFunc: () => true })
  const us = await read(client, stream, 20, { filter: wants(["us"], false) })
  const both = await read(client, stream, 40, { filter: wants(["us"], true) })
  await pause(300)
  // Whole chunks come; a filter may let one through by chance, but not all.
  assert.deepEqual(us.map(said).filter((body) => body.startsWith("b")), numbers("b", 0, 20))
  assert.deepEqual(both.map(said).filter((body) => !body.startsWith("a")), [...numbers("b", 0, 20), ...numbers("c", 0, 20)])
  assert.ok(us.length < 60 && both.length < 60, "the filter left nothing out")
  await client.close()
  ok("filter")
}

async function batch() {
  const client = await connect(NODES[1])
  const stream = "node-batch"
  await client.createStream({ stream })
  const publisher = await client.declarePublisher({ stream })
  const bodies = numbers("b", 0, 20)
  const messages = bodies.map((body) => ({ content: Buffer.from(body) }))
  let confirms = 0
  publisher.on("publish_confirm", (_, ids) => void (confirms += ids.length))
  // The library reads one batch of a chunk, so each gets a chunk of its own: the next one goes when the one before is stored.
  for (const [before, kind] of [CompressionType.None, CompressionType.Gzip].entries()) {
    await publisher.sendSubEntries(messages, kind)
    await until(() => confirms > before, () => `${confirms} of ${before + 1} confirms of batches`)
  }
  const got = await read(client, stream, 40)
  assert.deepEqual(got.map(said), [...bodies, ...bodies])
  // Not their offsets: the library counts the entries of a chunk, not the messages in its batches.
  await client.close()
  ok("batch")
}

async function superStream() {
  const [one, two] = [await connect(NODES[0]), await connect(NODES[2])]
  await one.createSuperStream({ streamName: "node-super" }, undefined, 3)
  assert.deepEqual((await two.queryPartitions({ superStream: "node-super" })).sort(), numbers("node-super-", 0, 3))
  const key = (_, options) => options.messageProperties.messageId
  const publisher = await one.declareSuperStreamPublisher({ superStream: "node-super" }, key)
  const bodies = numbers("s", 0, 90)
  for (const body of bodies) await publisher.send(Buffer.from(body), { messageProperties: { messageId: body } })
  const [got, readers] = [[], new Set()]
  await two.declareSuperStreamConsumer({ superStream: "node-super", consumerRef: "group" }, (message, consumer) => {
    got.push(said(message))
    readers.add(consumer.extendedId)
  })
  await until(() => got.length >= 90, () => `${got.length} of 90 messages of the super stream`)
  await pause(200)
  assert.deepEqual([...got].sort(), [...bodies].sort())
  assert.equal(readers.size, 3)
  await one.close()
  await two.close()
  ok("super")
}

async function single() {
  const [one, two, three] = [await connect(NODES[0]), await connect(NODES[1]), await connect(NODES[2])]
  const stream = "node-single"
  await one.createStream({ stream })
  const [first, second] = [[], []]
  const member = (got) => ({
    stream,
    offset: rabbit.Offset.first(),
    singleActive: true,
    consumerRef: "group",
    consumerUpdateListener: async () => rabbit.Offset.offset(BigInt(first.length + got.length)),
  })
  await one.declareConsumer(member(first), (message) => void first.push(said(message)))
  await two.declareConsumer(member(second), (message) => void second.push(said(message)))
  const publisher = await three.declarePublisher({ stream })
  await publish(publisher, numbers("m", 0, 30))
  await until(() => first.length + second.length >= 30, () => `${first.length} and ${second.length} of 30 messages`)
  assert.ok(first.length === 30, "the first that came reads")
  await one.close()
  await publish(publisher, numbers("m", 30, 60))
  await until(() => second.length >= 30, () => `${second.length} of 30 messages for who takes over`)
  assert.deepEqual([...first, ...second], numbers("m", 0, 60))
  await two.close()
  await three.close()
  ok("single")
}

// The node that leads the stream, where the client publishes, dies; the application comes back through another one.
async function reconnect() {
  const stream = "node-reconnect"
  let client = await connect(NODES[0])
  await client.createStream({ stream })
  const [metadata] = await client.queryMetadata({ streams: [stream] })
  const leader = `${metadata.leader.host}:${metadata.leader.port}`
  let publisher = await client.declarePublisher({ stream, publisherRef: "steady" })
  const bodies = numbers("m", 1, 201)
  await publish(publisher, bodies.slice(0, 100))
  // These are on their way when the node dies.
  for (const body of bodies.slice(100, 150)) await publisher.send(Buffer.from(body)).catch(() => undefined)
  await kill(leader)
  client = await connectSomewhere(NODES.indexOf(leader) + 1)
  let known
  for (const end = Date.now() + PATIENCE; ; ) {
    try {
      publisher = await client.declarePublisher({ stream, publisherRef: "steady" })
      known = Number(await publisher.getLastPublishingId())
      break
    } catch (error) {
      if (Date.now() > end) throw error
      await pause(100)
    }
  }
  assert.ok(known >= 100 && known <= 150, `the last publishing id is ${known}`)
  // All that is not known to be stored is said again, and some of what is.
  const confirmed = new Set()
  publisher.on("publish_confirm", (_, ids) => ids.forEach((id) => confirmed.add(Number(id))))
  for (let id = known - 20; id <= 200; id++) await publisher.send(Buffer.from("m" + id), { publishingId: BigInt(id) })
  await until(() => confirmed.has(200), () => `${confirmed.size} confirms after the node was killed`)
  const got = await read(client, stream, 200)
  await pause(300)
  assert.deepEqual(got.map(said), bodies, "each once and in order")
  await client.close()
  ok("reconnect")
}

async function main() {
  for (const step of [confirm, filter, batch, superStream, single, reconnect]) await step()
  process.exit(0)
}

process.on("unhandledRejection", (error) => console.error("unhandled", error))
main().catch((error) => {
  console.error(error)
  process.exit(1)
})
