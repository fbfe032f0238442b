// The list of recent changes, latest first.
'use strict'

const maxChanges = 50
let changes = [] // latest first
let changesSince

// addChanges puts newer changes before the others. The first ones after a connect replace all.
function addChanges(event, replace) {
  if (!replace && event.changes.length === 0) return
  changes = [...event.changes, ...(replace ? [] : changes)].slice(0, maxChanges)
  changesSince = event.since
  const list = document.querySelector('#changes ol')
  if (replace) list.replaceChildren()
  list.prepend(...event.changes.map(changeItem))
  while (list.children.length > maxChanges) list.lastElementChild.remove()
  showChangeTimes()
  markScrollable()
}

function changeItem(change) {
  const li = clone('change')
  li.time = change.time
  setText(byClass(li, 'change'), change.change)
  byClass(li, 'change').dataset.change = change.change
  setText(byClass(li, 'pod'), change.pod)
  setText(byClass(li, 'why'), change.why || '')
  return li
}

// showChangeTimes shows the times again, because at midnight they get a date.
function showChangeTimes() {
  if (changesSince) setText(byId('changes-since'), `seen since ${utc(changesSince)} UTC`)
  for (const li of document.querySelectorAll('#changes li')) if (li.time) setText(li.querySelector('time'), utc(li.time))
}
