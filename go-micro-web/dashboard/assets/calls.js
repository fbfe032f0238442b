// The form that greets once, and the calls that go on while "Keep calling" is checked.
'use strict'

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
  for (const row of document.querySelectorAll('#services tbody tr')) {
    row.classList.remove('answered')
    if (row.dataset.key === `${answer.pod} ${answer.address}`) {
      row.offsetWidth // a reflow restarts the animation
      row.classList.add('answered')
    }
  }
}

// ---- keep calling ----

// The server calls as long as the event stream that asked for calls is open. So the
// calls end when the page is closed, reloaded or hidden.

// callRate returns the calls per second that the viewer wants, or 0.
const callRate = () => byId('keep').checked ? Number(byId('rate').value) : 0

byId('keep').addEventListener('change', () => {
  if (byId('keep').checked && !byId('rate').reportValidity()) byId('keep').checked = false
  byId('traffic').hidden = !byId('keep').checked
  setText(byId('calling'), byId('keep').checked ? 'Calling…' : '')
  connect()
})

byId('rate').addEventListener('change', () => {
  if (byId('keep').checked && byId('rate').reportValidity()) connect()
})

const milliseconds = ms => ms === undefined ? '–' : ms.toFixed(1) + ' ms'

// showCalls shows the numbers of the calls. Screen readers announce the text about the
// failures, so it changes only when the number of failures does.
function showCalls(calls) {
  if (!byId('keep').checked) return
  const failures = calls.failures ? count(calls.failures, 'failed call') : 'no failed call'
  setText(byId('calling'), `${calls.pod} calls go-micro-srv ${calls.rate} times a second${calls.viewers > 1 ? ` for ${calls.viewers} viewers` : ''}: ${failures} in the last ${calls.seconds} s`)
  updateList(document.querySelector('#traffic tbody'), calls.instances, i => i.pod + ' ' + i.address, () => clone('traffic'), (row, instance) => updateCalls(row, instance, calls))
  showTimeline(calls)
  markScrollable()
}

function updateCalls(row, instance, calls) {
  setText(byClass(row, 'pod'), instance.pod || instance.address)
  byClass(row, 'state').dataset.state = instance.state
  setText(byClass(row, 'state').firstElementChild, instance.state)
  setText(byClass(row, 'calls'), [callsText(instance), instance.busy ? `${instance.busy} refused as busy` : ''].filter(Boolean).join(', '))
  setText(byClass(row, 'share'), Math.round(100 * instance.share) + ' %')
  byClass(row, 'share').style.setProperty('--share', 100 * instance.share + '%')
  setText(byClass(row, 'count'), String(instance.calls))
  setText(byClass(row, 'failures'), String(instance.failures))
  byClass(row, 'failures').classList.toggle('failed', instance.failures > 0)
  setText(byClass(row, 'p50'), milliseconds(instance.p50ms))
  setText(byClass(row, 'p99'), milliseconds(instance.p99ms))
}

// stayedText describes which tries stayed in the zone of the pod: "" if no zone is known.
const stayedText = ({zone, stayed}) => stayed === undefined ? '' : `, ${Math.round(100 * stayed)} % stayed in zone ${zone}`

// retriesText describes what pod.Client did after a try failed or was slow: "" if nothing happened.
function retriesText({made, refused = {}, hedges}) {
  const reasons = {over_budget: 'over the retry budget', chain_stopped: 'for a request that is a retry', pushed_back: 'as the server asked'}
  return [made ? [count(made, 'retry').replace(/rys$/, 'ries')] : [], hedges ? [count(hedges, 'second attempt')] : [],
    ...Object.keys(refused).sort().map(reason => [`${refused[reason]} not retried: ${reasons[reason] ?? reason}`])].flat().map(text => ', ' + text).join('')
}

// showTimeline draws a bar for each second: the answered calls, with the failed ones on
// top, and a line where an instance of go-micro-srv was ejected, not ready or back. The
// text has the same facts.
function showTimeline(calls) {
  const {from, calls: ended, failures} = calls.timeline
  const svg = byId('timeline')
  const begin = Date.parse(from)
  const top = Math.max(calls.rate, ...ended)
  const marks = changes.filter(change => change.service === 'go-micro-srv' && Date.parse(change.time) >= begin).reverse()
  const shapes = []
  const bar = (name, x, y, width, height) => {
    const rect = document.createElementNS('http://www.w3.org/2000/svg', 'rect')
    for (const [attribute, value] of Object.entries({class: name, x, y, width, height})) rect.setAttribute(attribute, value)
    shapes.push(rect)
  }
  ended.forEach((n, x) => {
    const height = n => 24 * n / top
    if (n > failures[x]) bar('good', x + .1, 24 - height(n - failures[x]), .8, height(n - failures[x]))
    if (failures[x]) bar('failed', x + .1, 24 - height(n), .8, height(failures[x]))
  })
  for (const mark of marks) bar(['back', 'ready', 'joined'].includes(mark.change) ? 'better' : 'worse', (Date.parse(mark.time) - begin) / 1000 - .1, 0, .2, 24)
  svg.replaceChildren(...shapes)
  const total = numbers => numbers.reduce((sum, n) => sum + n, 0)
  const seconds = failures.flatMap((n, x) => n ? [`${n} at ${utc(begin + 1000 * x)}`] : [])
  const facts = [`Last minute: ${count(total(ended), 'call')}, ${total(failures)} failed${seconds.length ? ` (${seconds.join(', ')})` : ''}`,
    `last ${calls.seconds} s: p50 ${milliseconds(calls.p50ms)}, p99 ${milliseconds(calls.p99ms)}${stayedText(calls)}${retriesText(calls.retries)}`,
    ...marks.map(mark => `${utc(mark.time)} ${mark.pod} ${mark.change}`)]
  setLabel(svg, 'Time line of calls. ' + facts.join('; '))
  setText(byId('timeline-text'), facts.slice(0, 2).join('; '))
}
