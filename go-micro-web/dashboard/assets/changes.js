// The list of recent changes, latest first.
'use strict'

const maxChanges = 50
let changes = [] // latest first

// addChanges puts newer changes before the others. The first ones after a connect replace all.
function addChanges(event, replace) {
  if (!replace && event.changes.length === 0) return
  changes = [...event.changes, ...(replace ? [] : changes)].slice(0, maxChanges)
  setText(byId('changes-since'), `seen since ${utc(event.since)} UTC`)
  const list = document.querySelector('#changes ol')
  if (replace) list.replaceChildren()
  list.prepend(...event.changes.map(changeItem))
  while (list.children.length > maxChanges) list.lastElementChild.remove()
  markScrollable()
}

function changeItem(change) {
  const li = clone('change')
  setText(li.querySelector('time'), utc(change.time))
  setText(byClass(li, 'change'), change.change)
  byClass(li, 'change').dataset.change = change.change
  setText(byClass(li, 'pod'), change.pod)
  setText(byClass(li, 'why'), change.why || '')
  return li
}
