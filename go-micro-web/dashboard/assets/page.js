// Keeps the page up to date with the registry. The server renders the page once; each
// event then carries the whole registry as JSON, and the script changes the rows
// in place. Text from the registry is only ever written as text, never as HTML.
'use strict'

const byId = id => document.getElementById(id)
const byClass = (element, name) => element.querySelector('.' + name)
const clone = template => byId(template + '-template').content.firstElementChild.cloneNode(true)

// Screen readers announce writes, so an unchanged text is not written again.
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text }
const setLabel = (element, text) => { if (element.getAttribute('aria-label') !== text) element.setAttribute('aria-label', text) }

// ---- connection ----

const maxSilence = 15000 // ms without a heartbeat, or without contact to the API server; both come every 4 to 14 s
const pollInterval = 10000 // ms
const pollsPerConnect = 3

let connection = 'reconnecting' // 'open', 'polling' or 'reconnecting'
let stream
let timer // of the next attempt to connect or to poll
let attempt = 0 // counts calls of disconnect, so that a late response of an older attempt is ignored
let clockOffset = 0 // ms that the server's clock is ahead of this one
let lastContact // ms since 1970, by the server's clock, when the API server last sent anything
let problem = ''

function connect() {
  disconnect()
  if (connection === 'open') setConnection('reconnecting')
  stream = new EventSource('events')
  stream.onmessage = event => { onAlive(); show(JSON.parse(event.data)) }
  stream.addEventListener('heartbeat', event => { onAlive(); showTimes(JSON.parse(event.data)) })
  stream.onerror = () => {
    if (stream.readyState === EventSource.CLOSED) poll(pollsPerConnect) // the server refused the stream
    else setConnection('reconnecting') // the browser reconnects by itself
  }
  timer = setTimeout(connect, maxSilence)
}

function disconnect() {
  attempt++
  clearTimeout(timer)
  if (stream) stream.close()
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
  let view
  try {
    const response = await fetch('services.json')
    if (response.ok) view = await response.json()
  } catch { /* the server does not answer */ }
  if (attempt !== thisAttempt) return
  setConnection(view ? 'polling' : 'reconnecting')
  if (view) show(view)
  timer = setTimeout(() => times > 1 ? poll(times - 1) : connect(), pollInterval + 2000 * Math.random())
}

// A hidden page holds no stream and does not poll.
document.addEventListener('visibilitychange', () => document.hidden ? disconnect() : connect())

function setConnection(state) {
  connection = state
  showConnection()
}

function showTimes(times) {
  clockOffset = Date.parse(times.time) - Date.now()
  lastContact = times.lastContact && Date.parse(times.lastContact)
  showConnection()
}

const serverNow = () => Date.now() + clockOffset

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

// ---- registry ----

function show(view) {
  problem = view.problem || ''
  setText(byId('problem'), problem)
  showTimes(view)
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
  setText(byClass(section, 'name'), service.name)
  setText(byClass(section, 'states'), countStates(service.instances) + omitted(service.omitted))
  updateList(byClass(section, 'endpoints'), service.endpoints, endpointText, createEndpoint, (li, endpoint) => setText(li.firstElementChild, endpointText(endpoint)))
  updateList(section.querySelector('tbody'), service.instances, instance => instance.pod + ' ' + instance.address, () => clone('instance'), updateInstance)
}

function updateInstance(row, instance) {
  for (const name of ['pod', 'address', 'version']) setText(byClass(row, name), instance[name])
  const state = byClass(row, 'state')
  state.dataset.state = instance.state
  setText(state.firstElementChild, instance.state)
  setText(byClass(row, 'calls'), callsText(instance.calls))
  row.created = Date.parse(instance.created)
  setText(byClass(row, 'age'), age(row.created))
}

// callsText describes the calls of the pod that serves the page: an ejection, or else the calls in flight.
function callsText(calls) {
  if (calls?.ejectedUntil) return `ejected until ${new Date(calls.ejectedUntil).toISOString().slice(11, 19)} UTC`
  return calls?.inFlight ? `${count(calls.inFlight, 'call')} in flight` : ''
}

const endpointText = e => e.name + (e.request ? `(${e.request})` : '') + (e.response ? ` → ${e.response}` : '')

function createEndpoint() {
  const li = document.createElement('li')
  li.append(document.createElement('code'))
  return li
}

const allStates = ['ready', 'not ready', 'terminating', 'node unreachable']

function countStates(instances) {
  return allStates
    .map(state => [instances.filter(instance => instance.state === state).length, state])
    .filter(([n]) => n > 0).map(([n, state]) => `${n} ${state}`).join(', ') || 'none'
}

const omitted = n => n ? `; ${n} more not shown` : ''

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
    setText(byId('summary'), `${count(services.length, 'service')}, ${count(instances.length, 'instance')}: ${countStates(instances)}${omitted(summarizedView.omitted)}`)
  }, Math.max(0, summarizedAt + 1000 - Date.now()))
}

function age(created) {
  const s = Math.max(0, Math.floor((serverNow() - created) / 1000))
  if (s < 120) return s + 's'
  if (s < 2 * 3600) return Math.floor(s / 60) + 'm'
  if (s < 48 * 3600) return Math.floor(s / 3600) + 'h'
  return Math.floor(s / 86400) + 'd'
}

setInterval(() => {
  showConnection()
  for (const row of document.querySelectorAll('tbody tr')) if (row.created) setText(byClass(row, 'age'), age(row.created))
}, 1000)

// ---- filter ----

// filter hides the rows that do not match the query, and services without a row.
// If the query names states, a row must have one of them. Each other word must be
// part of the service, pod, address or version, or begin a word of the state. So
// "ready" does not find "not ready". The filter appears if there are more than 20 rows.
function filter() {
  let query = byId('query').value.toLowerCase().trim().replace(/\s+/g, ' ')
  const active = query !== ''
  const states = new Set()
  for (const state of [...allStates].sort((a, b) => b.length - a.length)) { // "not ready" before "ready"
    const withoutState = ` ${query} `.replaceAll(` ${state} `, ' ').trim()
    if (withoutState !== query) states.add(state)
    query = withoutState
  }
  const words = query.split(' ').filter(Boolean)
  let matches = 0
  const rows = document.querySelectorAll('tbody tr')
  for (const section of byId('services').children) {
    let found = false
    for (const row of section.querySelectorAll('tbody tr')) {
      row.hidden = active && !matchesRow(section, row, states, words)
      if (!row.hidden) matches++, found = true
    }
    section.hidden = active && !found
  }
  byId('filter').hidden = rows.length <= 20 && !active
  setText(byId('matches'), active ? `${matches} of ${count(rows.length, 'instance')}` : '')
  markScrollable()
}

function matchesRow(section, row, states, words) {
  const state = byClass(row, 'state').dataset.state
  if (states.size > 0 && !states.has(state)) return false
  const texts = [section.dataset.key, ...['pod', 'address', 'version'].map(name => byClass(row, name).textContent)].map(text => text.toLowerCase())
  return words.every(word => texts.some(text => text.includes(word)) || startsWord(state, word))
}

// startsWord reports whether a word begins the state, or its last word if that is
// not the name of another state.
function startsWord(state, word) {
  const last = state.slice(state.lastIndexOf(' ') + 1)
  return state.startsWith(word) || !allStates.includes(last) && last.startsWith(word)
}

byId('query').addEventListener('input', filter)

// markScrollable makes the tables that scroll reachable with the keyboard.
function markScrollable() {
  const all = [...document.querySelectorAll('.instances')].map(element => [element, element.scrollHeight > element.clientHeight])
  for (const [element, scrolls] of all) { // all sizes are read before the first change
    if (scrolls === element.hasAttribute('tabindex')) continue
    if (scrolls) {
      element.tabIndex = 0
      element.setAttribute('role', 'region')
      element.setAttribute('aria-label', 'Instances of ' + element.closest('section').dataset.key)
    } else {
      for (const name of ['tabindex', 'role', 'aria-label']) element.removeAttribute(name)
    }
  }
}
addEventListener('resize', markScrollable)

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
