// Keeps the page as the registry is. The server has rendered it once; each event
// then carries all of it as JSON, and rows are changed where they stand. Text
// from the registry only ever becomes text.
'use strict'

const id = name => document.getElementById(name)
const part = (element, name) => element.querySelector('.' + name)
const made = name => id(name).content.firstElementChild.cloneNode(true)
const write = (element, text) => { if (element.textContent !== text) element.textContent = text }
const label = (element, text) => { if (element.getAttribute('aria-label') !== text) element.setAttribute('aria-label', text) }

// ---- the stream ----

const silence = 25000 // ms; the server says something every 10 s
let source, silent, skew = 0 // ms from this clock to the server's

function connect() {
  disconnect()
  source = new EventSource('events')
  source.onmessage = event => { live(); show(JSON.parse(event.data)) }
  source.addEventListener('beat', live)
  source.onerror = () => {
    write(id('live'), 'Reconnecting…')
    // It tries again by itself, but not after a refusal.
    if (source.readyState === EventSource.CLOSED) again(1000 + 2000 * Math.random())
  }
  again(silence)
}

function disconnect() {
  clearTimeout(silent)
  if (source) source.close()
}

function again(after) {
  clearTimeout(silent)
  silent = setTimeout(connect, after)
}

function live() {
  write(id('live'), 'Live')
  again(silence)
}

// Who does not look costs nothing.
document.addEventListener('visibilitychange', () => document.hidden ? disconnect() : connect())

// ---- the registry ----

function show(view) {
  skew = Date.parse(view.time) - Date.now()
  write(id('problem'), view.problem || '')
  write(id('seen'), view.pod)
  arrange(id('services'), view.services, service => service.name, () => made('section'), fill)
  summarize(view)
  filter()
}

// arrange makes the children of a list those of the items, in their order, and
// moves none that stays: the focus stays where it is.
function arrange(list, items, key, make, fill) {
  const old = new Map([...list.children].map(child => [child.dataset.key ?? child.textContent, child]))
  const keys = new Set(items.map(key))
  for (const [k, child] of old) if (!keys.has(k)) child.remove()
  let next = list.firstElementChild
  for (const item of items) {
    let child = old.get(key(item))
    if (!child) {
      child = make()
      child.dataset.key = key(item)
      child.classList.add('new')
    }
    fill(child, item)
    if (child === next) next = next.nextElementSibling
    else list.insertBefore(child, next)
  }
}

function fill(section, service) {
  label(section, service.name)
  label(part(section, 'nodes'), 'Nodes of ' + service.name)
  write(part(section, 'name'), service.name)
  write(part(section, 'states'), states(service.nodes))
  arrange(part(section, 'endpoints'), service.endpoints, shown, () => {
    const li = document.createElement('li')
    li.append(document.createElement('code'))
    return li
  }, (li, endpoint) => write(li.firstElementChild, shown(endpoint)))
  arrange(section.querySelector('tbody'), service.nodes, node => node.pod + ' ' + node.address, () => made('row'), (row, node) => {
    for (const name of ['pod', 'address', 'version']) write(part(row, name), node[name])
    const state = part(row, 'state')
    state.dataset.state = node.state
    write(state.firstElementChild, node.state)
    row.created = Date.parse(node.created)
    write(part(row, 'age'), age(row.created))
  })
}

const shown = e => e.name + (e.request ? `(${e.request})` : '') + (e.response ? ` → ${e.response}` : '')

function states(nodes) {
  return ['ready', 'not ready', 'stopping', 'unheard of']
    .map(state => [nodes.filter(node => node.state === state).length, state])
    .filter(([n]) => n > 0).map(([n, state]) => `${n} ${state}`).join(', ') || 'none'
}

const count = (n, what) => `${n} ${what}${n === 1 ? '' : 's'}`

// The summary is read out by screen readers: not more often than they can follow.
let last, timer, said = 0
function summarize(view) {
  last = view
  timer ??= setTimeout(() => {
    timer = undefined
    said = Date.now()
    const nodes = last.services.flatMap(service => service.nodes)
    write(id('summary'), `${count(last.services.length, 'service')}, ${count(nodes.length, 'node')}: ${states(nodes)}`)
  }, Math.max(0, said + 1000 - Date.now()))
}

function age(created) {
  const s = Math.max(0, Math.floor((Date.now() + skew - created) / 1000))
  if (s < 120) return s + 's'
  if (s < 2 * 3600) return Math.floor(s / 60) + 'm'
  if (s < 48 * 3600) return Math.floor(s / 3600) + 'h'
  return Math.floor(s / 86400) + 'd'
}

setInterval(() => {
  for (const row of document.querySelectorAll('tbody tr')) if (row.created) write(part(row, 'age'), age(row.created))
}, 1000)

// filter hides the rows that lack one of the words. Few rows need no filter.
function filter() {
  const words = id('words').value.toLowerCase().split(/\s+/).filter(Boolean)
  const rows = document.querySelectorAll('tbody tr')
  id('filter').hidden = rows.length <= 20 && words.length === 0
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : ''
    row.hidden = !words.every(word => text.includes(word))
  }
}
id('words').addEventListener('input', filter)

// ---- the form ----

id('hello').addEventListener('submit', async event => {
  event.preventDefault()
  const body = new URLSearchParams(new FormData(event.target))
  let answer
  try {
    const response = await fetch('./', {method: 'POST', body, headers: {Accept: 'application/json'}})
    answer = await response.json()
  } catch {
    answer = {problem: 'This page’s server did not answer.', ms: 0}
  }
  const li = made('said')
  write(part(li, 'says'), answer.greeting || answer.problem)
  write(part(li, 'pod'), answer.pod || answer.address || '')
  write(part(li, 'ms'), answer.ms.toFixed(1) + ' ms')
  li.classList.toggle('failed', !answer.greeting)
  id('answers').prepend(li)
  while (id('answers').children.length > 8) id('answers').lastElementChild.remove()
  for (const row of document.querySelectorAll('tbody tr')) {
    row.classList.remove('answered')
    if (row.dataset.key === `${answer.pod} ${answer.address}`) {
      row.offsetWidth // or the animation would not begin anew
      row.classList.add('answered')
    }
  }
})

if (!document.hidden) connect()
