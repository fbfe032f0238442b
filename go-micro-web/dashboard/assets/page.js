// Keeps the page up to date with the registry. The server renders the page once; each
// event then contains the whole registry as JSON, and the script changes the rows
// in place. Text from the registry is only ever written as text, never as HTML.
// changes.js, calls.js and stream.js use the functions of this script.
'use strict'

const byId = id => document.getElementById(id)
const byClass = (element, name) => element.querySelector('.' + name)
const clone = template => byId(template + '-template').content.firstElementChild.cloneNode(true)

// Screen readers announce writes, so an unchanged text is not written again.
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text }
const setLabel = (element, text) => { if (element.getAttribute('aria-label') !== text) element.setAttribute('aria-label', text) }

let clockOffset = 0 // ms that the server's clock is ahead of this one
let problem = ''

const serverNow = () => Date.now() + clockOffset

// utc formats a time, with its date unless that is today. The server does the same.
const utc = time => {
  const [date, clock] = new Date(time).toISOString().slice(0, 19).split('T')
  return new Date(serverNow()).toISOString().startsWith(date) ? clock : `${date} ${clock}`
}

document.documentElement.classList.add('script') // shows what only works with scripts

// ---- registry ----

const maxOpenRows = 20 // instances on the page up to which the instances of a new service are shown at once
const maxVersions = 4 // that the heading of a service names

let shown // the latest view
let namespace

function show(view) {
  shown = view
  namespace = view.namespace
  problem = view.problem || ''
  setText(byId('problem'), problem)
  showTimes(view)
  setText(byId('server'), view.pod)
  showServices()
  scheduleSummary(view)
}

function showServices() {
  const total = shown.services.reduce((sum, service) => sum + service.instances.length, 0)
  const create = () => {
    const section = clone('service')
    section.firstElementChild.open = total <= maxOpenRows
    return section
  }
  updateList(byId('services'), sortServices(shown.services), service => service.name, create, updateService)
  filter()
}

// The server sorts in the same way: unhealthy services and instances first.
const unhealthy = service => (service.states['not ready'] ?? 0) + (service.states['node unreachable'] ?? 0)
const rank = {'not ready': 0, 'node unreachable': 0, terminating: 1, ready: 2}
const sortInstances = instances => [...instances].sort((a, b) => rank[a.state] - rank[b.state] || ((a.zone || '') < (b.zone || '') ? -1 : Number((a.zone || '') > (b.zone || ''))))
const orders = {
  unhealthy: (a, b) => Math.min(unhealthy(b), 1) - Math.min(unhealthy(a), 1),
  instances: (a, b) => b.instances.length - a.instances.length,
  name: () => 0, // the server sends them in this order
}
const sortServices = services => [...services].sort(orders[byId('sort').value] ?? orders.unhealthy)

byId('sort').addEventListener('change', () => { if (shown) showServices() })

// updateList makes the children of a list equal to the items, in their order. It
// moves no child that stays in place, and returns the focus to a child that it moves.
function updateList(list, items, keyOf, create, update) {
  const existing = new Map([...list.children].map(child => [child.dataset.key ?? child.textContent, child]))
  const keys = new Set(items.map(keyOf))
  for (const [key, child] of existing) if (!keys.has(key)) child.remove()
  const focused = document.activeElement
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
  if (document.activeElement !== focused && list.contains(focused)) focused.focus()
}

function updateService(section, service) {
  setLabel(section, service.name)
  setText(byClass(section, 'name'), service.name)
  setText(byClass(section, 'states'), countStates(service.states) + omitted(service.omitted))
  byClass(section, 'states').classList.toggle('unhealthy', unhealthy(service) > 0)
  setText(byClass(section, 'versions'), countVersions(service.versions))
  updateList(byClass(section, 'endpoints'), service.endpoints, endpointText, createEndpoint, (li, endpoint) => setText(li.firstElementChild, endpointText(endpoint)))
  updateList(section.querySelector('tbody'), sortInstances(service.instances), instance => instance.pod + ' ' + instance.address, () => clone('instance'), updateInstance)
}

function updateInstance(row, instance) {
  for (const name of ['pod', 'address', 'version']) setText(byClass(row, name), instance[name])
  setText(byClass(row, 'zone'), instance.zone ? `zone ${instance.zone}` : '')
  const state = byClass(row, 'state')
  state.dataset.state = instance.state
  setText(state.firstElementChild, instance.state)
  setText(byClass(row, 'reason'), instance.reason || '')
  setText(byClass(row, 'calls'), callsText(instance.calls))
  setText(byClass(row, 'encryption'), encryptionText(instance.calls?.certificate))
  const [address, logs] = byClass(row, 'copy').children
  setLabel(address, `Copy the address of ${instance.pod}`)
  setLabel(logs, `Copy the kubectl logs command of ${instance.pod}`)
  row.created = Date.parse(instance.created)
  setText(byClass(row, 'age'), age(row.created))
}

// callsText describes the calls of the pod that serves the page: an ejection, or else the calls in flight.
function callsText(calls) {
  if (calls?.ejectedUntil) return `ejected until ${utc(calls.ejectedUntil)} UTC`
  return calls?.inFlight ? `${count(calls.inFlight, 'call')} in flight` : ''
}

// encryptionText describes the certificate of an instance that the pod calls with mutual TLS.
const encryptionText = certificate => certificate ? `encrypted, certificate of ${certificate.signer} until ${utc(certificate.notAfter)} UTC` : ''

const endpointText = e => e.name + (e.request ? `(${e.request})` : '') + (e.response ? ` → ${e.response}` : '')

function createEndpoint() {
  const li = document.createElement('li')
  li.append(document.createElement('code'))
  return li
}

const allStates = ['ready', 'not ready', 'terminating', 'node unreachable']

const countStates = states => allStates.filter(state => states[state] > 0).map(state => `${states[state]} ${state}`).join(', ') || 'none'

function countVersions(versions) {
  const names = Object.keys(versions).sort((a, b) => versions[b] - versions[a] || (a < b ? -1 : 1))
  const more = names.length > maxVersions ? [count(names.length - maxVersions, 'more version')] : []
  return [...names.slice(0, maxVersions).map(name => `${versions[name]} ${name || 'without version'}`), ...more].join(', ')
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
    const states = {}
    for (const service of services) for (const [state, n] of Object.entries(service.states)) states[state] = (states[state] ?? 0) + n
    const instances = services.reduce((sum, service) => sum + service.instances.length, 0)
    setText(byId('summary'), `${count(services.length, 'service')}, ${count(instances, 'instance')}: ${countStates(states)}${omitted(summarizedView.omitted)}`)
  }, Math.max(0, summarizedAt + 1000 - Date.now()))
}

function age(created) {
  const s = Math.max(0, Math.floor((serverNow() - created) / 1000))
  if (s < 120) return s + 's'
  if (s < 2 * 3600) return Math.floor(s / 60) + 'm'
  if (s < 48 * 3600) return Math.floor(s / 3600) + 'h'
  return Math.floor(s / 86400) + 'd'
}

// ---- filter ----

// filter hides the rows that do not match the query, and services without a row.
// If the query names states, a row must have one of them. Each other word must be
// part of the service, pod, address, version or zone, or begin a word of the state. So
// "ready" does not find "not ready". A service with a match is opened while there is a query.
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
  const rows = document.querySelectorAll('#services tbody tr')
  for (const section of byId('services').children) {
    let found = false
    for (const row of section.querySelectorAll('tbody tr')) {
      row.hidden = active && !matchesRow(section, row, states, words)
      if (!row.hidden) matches++, found = true
    }
    section.hidden = active && !found
    const details = section.firstElementChild
    if (active && found && !details.open) details.open = true, details.dataset.found = ''
    if (!active && 'found' in details.dataset) details.open = false, delete details.dataset.found
  }
  setText(byId('matches'), active ? `${matches} of ${count(rows.length, 'instance')}` : '')
  markScrollable()
}

function matchesRow(section, row, states, words) {
  const state = byClass(row, 'state').dataset.state
  if (states.size > 0 && !states.has(state)) return false
  const texts = [section.dataset.key, ...['pod', 'address', 'version', 'zone'].map(name => byClass(row, name).textContent)].map(text => text.toLowerCase())
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
  const all = [...document.querySelectorAll('.instances, #changes ol')].map(element => [element, element.scrollHeight > element.clientHeight])
  for (const [element, scrolls] of all) { // all sizes are read before the first change
    if (scrolls === element.hasAttribute('tabindex')) continue
    if (scrolls) {
      element.tabIndex = 0
      if (element.tagName === 'OL') continue // it has a role and a label
      element.setAttribute('role', 'region')
      element.setAttribute('aria-label', 'Instances of ' + (element.closest('section')?.dataset.key ?? 'the calls'))
    } else {
      for (const name of element.tagName === 'OL' ? ['tabindex'] : ['tabindex', 'role', 'aria-label']) element.removeAttribute(name)
    }
  }
}
addEventListener('resize', markScrollable)
byId('services').addEventListener('toggle', markScrollable, true) // the event does not bubble

// ---- copy ----

byId('services').addEventListener('click', async event => {
  const what = event.target.dataset.copy
  if (!what) return
  const row = event.target.closest('tr')
  const [pod, address] = ['pod', 'address'].map(name => byClass(row, name).textContent)
  const safe = /^[a-z0-9.-]+$/.test(pod) // the name of every real pod, so that the shell sees one word
  const text = what === 'address' ? address : safe && `kubectl logs ${namespace ? `-n ${namespace} ` : ''}${pod}`
  const copied = text && await copy(text)
  setText(byId('copied'), copied ? `Copied: ${text}` : 'Nothing was copied.')
})

// copy writes a text to the clipboard. Over plain HTTP, browsers offer the new interface
// only at localhost.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    document.addEventListener('copy', event => {
      event.clipboardData.setData('text/plain', text)
      event.preventDefault()
    }, {once: true})
    return document.execCommand('copy')
  }
}
