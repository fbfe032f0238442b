// The connection to the server: an event stream, and polling when the server refuses the
// stream. It is the last script, because it starts the connection.
'use strict'

const maxSilence = 15000 // ms without a heartbeat, or without contact to the API server; both come every 4 to 14 s
const pollInterval = 10000 // ms
const pollsPerConnect = 3
const reconnectDelay = 1000 // ms

let connection = 'reconnecting' // 'open', 'polling' or 'reconnecting'
let stream // aborts the request of the stream
let timer // of the next attempt to connect or to poll
let attempt = 0 // counts calls of disconnect, so that a late response of an older attempt is ignored
let lastContact // ms since 1970, by the server's clock, when the API server last sent anything

// connect opens the stream of events. A stream that asks for calls is a POST, which the
// EventSource of browsers cannot send.
async function connect() {
  disconnect()
  if (connection === 'open') setConnection('reconnecting')
  const thisAttempt = attempt
  stream = new AbortController()
  timer = setTimeout(connect, maxSilence)
  const rate = callRate()
  try {
    const response = await fetch('events', {signal: stream.signal, ...(rate && {method: 'POST', body: new URLSearchParams({rate})})})
    if (attempt !== thisAttempt) return
    if (!response.ok) return poll(pollsPerConnect) // the server refused the stream
    let first = true // changes event
    for await (const {type, data} of events(response.body)) {
      if (attempt !== thisAttempt) return
      onAlive()
      if (type === 'message') show(data)
      if (type === 'heartbeat') showTimes(data)
      if (type === 'calls') showCalls(data)
      if (type === 'changes') addChanges(data, first), first = false
    }
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof ReferenceError) throw error // a defect of this page
  }
  if (attempt !== thisAttempt) return
  setConnection('reconnecting')
  clearTimeout(timer)
  timer = setTimeout(connect, reconnectDelay)
}

// events parses server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html,
// as far as the server uses the format.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  for (let text = ''; ;) {
    const {done, value} = await reader.read()
    if (done) return
    const blocks = (text + value).split('\n\n')
    text = blocks.pop()
    for (const block of blocks) {
      const field = name => block.split('\n').find(line => line.startsWith(name + ': '))?.slice(name.length + 2)
      if (field('data')) yield {type: field('event') ?? 'message', data: JSON.parse(field('data'))}
    }
  }
}

function disconnect() {
  attempt++
  clearTimeout(timer)
  if (stream) stream.abort()
}

function onAlive() {
  setConnection('open')
  clearTimeout(timer)
  timer = setTimeout(connect, maxSilence)
}

// poll fetches the registry a number of times and then tries to connect again. The
// random part of the delay spreads the requests of pages that were refused together.
async function poll(times) {
  disconnect()
  const thisAttempt = attempt
  const get = async path => {
    const response = await fetch(path)
    return response.ok ? response.json() : undefined
  }
  let view, recent
  try {
    [view, recent] = await Promise.all(['services.json', 'changes.json'].map(get))
  } catch { /* the server does not answer */ }
  if (attempt !== thisAttempt) return
  setConnection(view ? 'polling' : 'reconnecting')
  if (view) show(view)
  if (recent) addChanges(recent, true)
  timer = setTimeout(() => times > 1 ? poll(times - 1) : connect(), pollInterval + 2000 * Math.random())
}

// A hidden page holds no stream and does not poll.
document.addEventListener('visibilitychange', () => document.hidden ? disconnect() : connect())

function setConnection(state) {
  connection = state
  if (state !== 'open' && byId('keep').checked) setText(byId('calling'), 'Not calling: there is no event stream')
  showConnection()
}

function showTimes(times) {
  clockOffset = Date.parse(times.time) - Date.now()
  lastContact = times.lastContact && Date.parse(times.lastContact)
  showConnection()
}

// showConnection shows "Live" only while the stream is open, the API server has sent
// something in the last 15 s and the view has no problem.
function showConnection() {
  const texts = {polling: `Too many viewers: updated every ${pollInterval / 1000} s`, reconnecting: 'Reconnecting…', open: 'Live'}
  let text = texts[connection]
  if (connection === 'open' && !(serverNow() - lastContact <= maxSilence)) text = 'API server silent'
  if (connection === 'open' && problem) text = 'Not live'
  setText(byId('connection'), text)
  setText(byId('contact'), lastContact ? `API server heard from ${age(lastContact)} ago` : 'API server not heard from yet')
}

setInterval(() => {
  showConnection()
  showChangeTimes()
  for (const row of document.querySelectorAll('#services tbody tr')) if (row.created) setText(byClass(row, 'age'), age(row.created))
}, 1000)

if (!document.hidden) connect()
