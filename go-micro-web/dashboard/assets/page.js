// Keeps the page equal to the registry. The server renders the page once; each
// event then carries the whole registry as JSON, and the script changes the rows
// in place. Text from the registry is only ever written as text, never as HTML.
'use strict'

const byId = id => document.getElementById(id)
const byClass = (element, name) => element.querySelector('.' + name)
const clone = template => byId(template + '-template').content.firstElementChild.cloneNode(true)

// Screen readers announce writes, so the same text is not written twice.
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text }
const setLabel = (element, text) => { if (element.getAttribute('aria-label') !== text) element.setAttribute('aria-label', text) }

// ---- event stream ----

const maxSilence = 25000 // ms; the server sends a heartbeat every 10 s
let stream
let reconnectTimer
let clockOffset = 0 // ms that the server's clock is ahead of this one

function connect() {
  disconnect()
  stream = new EventSource('events')
  stream.onmessage = event => { onAlive(); show(JSON.parse(event.data)) }
  stream.addEventListener('heartbeat', onAlive)
  stream.onerror = () => {
    setText(byId('connection'), 'Reconnecting…')
    // The browser reconnects by itself unless the server refused the stream.
    if (stream.readyState === EventSource.CLOSED) reconnectAfter(1000 + 2000 * Math.random())
  }
  reconnectAfter(maxSilence)
}

function disconnect() {
  clearTimeout(reconnectTimer)
  if (stream) stream.close()
}

function reconnectAfter(delay) {
  clearTimeout(reconnectTimer)
  reconnectTimer = setTimeout(connect, delay)
}

function onAlive() {
  setText(byId('connection'), 'Live')
  reconnectAfter(maxSilence)
}

// A hidden page holds no stream.
document.addEventListener('visibilitychange', () => document.hidden ? disconnect() : connect())

// ---- registry ----

function show(view) {
  clockOffset = Date.parse(view.time) - Date.now()
  setText(byId('problem'), view.problem || '')
  setText(byId('server'), view.pod)
  updateList(byId('services'), view.services, service => service.name, () => clone('service'), updateService)
  scheduleSummary(view)
  filter()
}

// updateList makes the children of a list equal to the items, in their order. It
// moves no child that stays in place, so the focus does not move either.
function updateList(list, items, keyOf, create, update) {
  const existing = new Map([...list.children].map(child => [child.dataset.key ?? child.textContent, child]))
  const keys = new Set(items.map(keyOf))
  for (const [key, child] of existing) if (!keys.has(key)) child.remove()
  let next = list.firstElementChild
  for (const item of items) {
    let child = existing.get(keyOf(item))
    if (!child) {
      child = create()
      child.dataset.key = keyOf(item)
      child.classList.add('new')
    }
    update(child, item)
    if (child === next) next = next.nextElementSibling
    else list.insertBefore(child, next)
  }
}

function updateService(section, service) {
  setLabel(section, service.name)
  setLabel(byClass(section, 'instances'), 'Instances of ' + service.name)
  setText(byClass(section, 'name'), service.name)
  setText(byClass(section, 'states'), countStates(service.instances))
  updateList(byClass(section, 'endpoints'), service.endpoints, endpointText, createEndpoint, (li, endpoint) => setText(li.firstElementChild, endpointText(endpoint)))
  updateList(section.querySelector('tbody'), service.instances, instance => instance.pod + ' ' + instance.address, () => clone('instance'), updateInstance)
}

function updateInstance(row, instance) {
  for (const name of ['pod', 'address', 'version']) setText(byClass(row, name), instance[name])
  const state = byClass(row, 'state')
  state.dataset.state = instance.state
  setText(state.firstElementChild, instance.state)
  row.created = Date.parse(instance.created)
  setText(byClass(row, 'age'), age(row.created))
}

const endpointText = e => e.name + (e.request ? `(${e.request})` : '') + (e.response ? ` → ${e.response}` : '')

function createEndpoint() {
  const li = document.createElement('li')
  li.append(document.createElement('code'))
  return li
}

function countStates(instances) {
  return ['ready', 'not ready', 'terminating', 'node unreachable']
    .map(state => [instances.filter(instance => instance.state === state).length, state])
    .filter(([n]) => n > 0).map(([n, state]) => `${n} ${state}`).join(', ') || 'none'
}

const count = (n, noun) => `${n} ${noun}${n === 1 ? '' : 's'}`

// Screen readers announce the summary, so it changes at most once per second.
let summarizedView, summaryTimer, summarizedAt = 0
function scheduleSummary(view) {
  summarizedView = view
  summaryTimer ??= setTimeout(() => {
    summaryTimer = undefined
    summarizedAt = Date.now()
    const services = summarizedView.services
    const instances = services.flatMap(service => service.instances)
    setText(byId('summary'), `${count(services.length, 'service')}, ${count(instances.length, 'instance')}: ${countStates(instances)}`)
  }, Math.max(0, summarizedAt + 1000 - Date.now()))
}

function age(created) {
  const s = Math.max(0, Math.floor((Date.now() + clockOffset - created) / 1000))
  if (s < 120) return s + 's'
  if (s < 2 * 3600) return Math.floor(s / 60) + 'm'
  if (s < 48 * 3600) return Math.floor(s / 3600) + 'h'
  return Math.floor(s / 86400) + 'd'
}

setInterval(() => {
  for (const row of document.querySelectorAll('tbody tr')) if (row.created) setText(byClass(row, 'age'), age(row.created))
}, 1000)

// ---- filter ----

// filter hides the rows that lack one of the words. It appears above 20 rows.
function filter() {
  const words = byId('query').value.toLowerCase().split(/\s+/).filter(Boolean)
  const rows = document.querySelectorAll('tbody tr')
  byId('filter').hidden = rows.length <= 20 && words.length === 0
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : ''
    row.hidden = !words.every(word => text.includes(word))
  }
}
byId('query').addEventListener('input', filter)

// ---- form ----

const maxAnswers = 8

byId('greeting').addEventListener('submit', async event => {
  event.preventDefault()
  const body = new URLSearchParams(new FormData(event.target))
  let answer
  try {
    const response = await fetch('./', {method: 'POST', body, headers: {Accept: 'application/json'}})
    answer = await response.json()
  } catch {
    answer = {problem: 'The server of this page did not answer.', ms: 0}
  }
  showAnswer(answer)
})

function showAnswer(answer) {
  const li = clone('answer')
  setText(byClass(li, 'message'), answer.greeting || answer.problem)
  setText(byClass(li, 'pod'), answer.pod || answer.address || '')
  setText(byClass(li, 'ms'), answer.ms.toFixed(1) + ' ms')
  li.classList.toggle('failed', !answer.greeting)
  byId('answers').prepend(li)
  while (byId('answers').children.length > maxAnswers) byId('answers').lastElementChild.remove()
  for (const row of document.querySelectorAll('tbody tr')) {
    row.classList.remove('answered')
    if (row.dataset.key === `${answer.pod} ${answer.address}`) {
      row.offsetWidth // a reflow restarts the animation
      row.classList.add('answered')
    }
  }
}

if (!document.hidden) connect()
