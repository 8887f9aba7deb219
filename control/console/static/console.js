// What the server can't do: live parts, keys, running times, copying. Every page and form also works without it.
(() => {
  "use strict"
  const root = document.documentElement
  root.classList.add("scripted")
  const ahead = Date.now() - Date.parse(document.querySelector("meta[name=now]").content)
  const now = () => Date.now() - ahead
  const store = (() => { try { localStorage.length; return localStorage } catch { return null } })()
  const kept = (name) => store?.getItem(name) === "1"
  const keep = (name, on) => store?.setItem(name, on ? "1" : "0")

  // Times relative to now: 14 s ago. `t` shows all as absolute times.
  const relative = (s) => s < 60 ? `${Math.floor(s)} s` : s < 7200 ? `${Math.floor(s / 60)} min`
    : s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`
  const times = (within = document) => {
    for (const time of within.querySelectorAll("time[data-ago]")) {
      const seconds = (now() - Date.parse(time.dateTime)) / 1000
      const text = kept("absolute") ? time.title : Math.abs(seconds) < 1 ? "now"
        : seconds < 0 ? `in ${relative(-seconds)}` : `${relative(seconds)} ago`
      if (time.textContent !== text) time.textContent = text
    }
  }
  setInterval(times, 1000)
  times()

  // Live parts: one stream per page, closed while the page is hidden. Parts with focus, selection or pointer wait.
  const chip = document.getElementById("live"), waiting = new Map()
  let source = null, stopped = false, retry = 0, again = 0, heard = 0, age = 0, lost = 0
  const busy = (part) => part.contains(document.activeElement) || part.matches(":hover:has(a, button, input, summary)")
    || (getSelection()?.isCollapsed === false && getSelection().containsNode(part, true))
  const put = () => {
    for (const [id, html] of waiting) {
      const part = document.getElementById(id)
      if (part && busy(part)) continue
      waiting.delete(id)
      if (!part) continue
      const made = document.createElement("template")
      made.innerHTML = html
      const fresh = made.content.firstElementChild
      if (!fresh || (fresh.dataset.same && fresh.dataset.same === part.dataset.same)) continue
      // A count of a list that is no longer on the page.
      if (fresh.dataset.of !== part.dataset.of) continue
      part.replaceWith(fresh)
      htmx.process(fresh)
      times(fresh)
    }
  }
  const show = () => {
    if (!chip) return
    const silent = (Date.now() - heard) / 1000, left = Math.ceil((again - Date.now()) / 1000)
    const [kind, text] = stopped ? ["gone", "Stopped"]
      : source?.readyState !== 1 ? ["gone", !lost ? "Connecting" : left > 0 ? `Not connected, again in ${left} s` : "Not connected"]
      : silent >= 5 ? ["gone", `No answer for ${relative(silent)}`]
      : age >= 5 ? ["stale", `Stale, ${relative(age + silent)} old`] : ["", "Live"]
    chip.className = `live ${kind}`
    if (chip.lastElementChild.textContent !== text) chip.lastElementChild.textContent = text
  }
  const close = () => { source?.close(); source = null; clearTimeout(retry) }
  const gone = (wait) => {
    close()
    lost += 1
    again = Date.now() + wait
    retry = setTimeout(open, wait)
    show()
  }
  const open = () => {
    close()
    if (!chip || stopped || document.hidden) return show()
    source = new EventSource(`/live?page=${encodeURIComponent(location.pathname + location.search)}`)
    const beat = (seconds) => { heard = Date.now(); age = seconds; lost = 0; show() }
    source.addEventListener("parts", (e) => {
      const told = JSON.parse(e.data)
      for (const [id, html] of Object.entries(told.parts)) waiting.set(id, html)
      beat(told.age)
      put()
    })
    source.addEventListener("beat", (e) => beat(JSON.parse(e.data)))
    source.addEventListener("title", (e) => { document.title = JSON.parse(e.data) })
    source.addEventListener("kind", (e) => { if (JSON.parse(e.data) !== root.dataset.kind) location.reload() })
    source.addEventListener("bye", (e) => gone(JSON.parse(e.data)))
    // When a replica stops, and after each refusal, after which the browser itself would not reconnect.
    source.onerror = () => gone(Math.min(30000, 1000 * 2 ** Math.min(lost, 5)) * (0.75 + Math.random() / 2))
    heard = Date.now()
    show()
  }
  setInterval(() => {
    put()
    // After several missed heartbeats the connection is dead. One that is being opened has more time.
    if (source && Date.now() - heard > (source.readyState === 1 ? 15000 : 30000)) gone(1000)
    show()
  }, 1000)
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open())
  addEventListener("pagehide", close)
  addEventListener("pageshow", (e) => { if (e.persisted) open() })
  // A different list on the same page: what is sent depends on the address.
  const follow = () => { waiting.clear(); open() }
  for (const shown of ["htmx:pushedIntoHistory", "htmx:historyRestore"]) document.addEventListener(shown, follow)
  const stop = () => { stopped = !stopped; stopped ? close() : open(); show() }

  // A log: the newest 2,000 lines, as they arrive, scrolled to the end unless somebody has scrolled up.
  const lines = document.querySelector("[data-stream]"), newer = document.getElementById("log-newer")
  const fed = document.getElementById("fed")
  let feed = null, fedAt = 0, unseen = 0
  const toEnd = () => { lines.scrollTop = lines.scrollHeight; unseen = 0; newer.hidden = true }
  const append = (html) => {
    const end = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 8, made = document.createElement("template")
    made.innerHTML = html
    unseen += made.content.childElementCount
    lines.append(made.content)
    while (lines.childElementCount > 2000) lines.firstElementChild.remove()
    if (end) return toEnd()
    newer.hidden = false
    newer.textContent = `${unseen} newer`
  }
  const listen = () => {
    feed?.close()
    feed = null
    if (!lines || document.hidden) return
    feed = new EventSource(lines.dataset.stream)
    fedAt = Date.now()
    // Existing lines are sent again.
    feed.onopen = () => lines.replaceChildren()
    feed.addEventListener("lines", (e) => { fedAt = Date.now(); append(JSON.parse(e.data)) })
    feed.addEventListener("beat", () => { fedAt = Date.now() })
  }
  setInterval(() => {
    if (!feed || !fed) return
    // A heartbeat arrives every 5 s. After a refusal the browser itself doesn't retry.
    const silent = (Date.now() - fedAt) / 1000
    const text = feed.readyState !== 1 ? "Not connected" : silent >= 12 ? `No answer for ${relative(silent)}` : "Live"
    fed.className = text === "Live" ? "live" : "live gone"
    if (fed.lastElementChild.textContent !== text) fed.lastElementChild.textContent = text
    if (silent > 30) listen()
  }, 1000)
  newer?.addEventListener("click", toEnd)
  document.addEventListener("visibilitychange", listen)
  addEventListener("pagehide", () => feed?.close())
  listen()

  document.addEventListener("click", async (e) => {
    const copy = e.target.closest("[data-copy]")
    if (copy) {
      await navigator.clipboard?.writeText(copy.parentElement.querySelector("pre").textContent)
      copy.lastElementChild.textContent = "Copied"
    }
    if (e.target.closest("#live")) stop()
  })
  const count = () => {
    const boxes = [...document.querySelectorAll("td input[name=node]")]
    for (const box of boxes) box.closest("tr").classList.toggle("sel", box.checked)
    const shown = document.querySelector("[data-count]")
    if (shown) shown.textContent = boxes.filter((b) => b.checked).length
  }
  document.addEventListener("change", (e) => {
    if (e.target.matches("[data-all]"))
      for (const box of document.querySelectorAll("td input[name=node]")) box.checked = e.target.checked
    count()
  })
  count()
  document.addEventListener("htmx:afterSettle", () => { count(); times() })

  // Keyboard shortcuts: none while typing, with Ctrl, Alt or Meta, or when turned off.
  const pages = { o: "/", n: "/nodes", r: "/releases", f: "/functions", s: "/schema", a: "/audit" }
  let goes = false
  const row = (step) => {
    const rows = [...document.querySelectorAll("tbody tr:has(th[scope=row] a)")]
    const here = rows.findIndex((r) => r.contains(document.activeElement))
    rows[Math.min(rows.length - 1, Math.max(0, here + step))]?.querySelector("th[scope=row] a").focus()
  }
  const acts = {
    "/": () => document.getElementById("q")?.focus(),
    "D": () => document.querySelector("#theme button")?.click(),
    "t": () => { keep("absolute", !kept("absolute")); times() },
    ".": stop,
    "j": () => row(1),
    "k": () => row(-1),
    "x": () => document.activeElement.closest("tr")?.querySelector("td input[name=node]")?.click(),
    "?": () => { const keys = document.getElementById("keys"); keys && (keys.open ? keys.close() : keys.showModal()) },
  }
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.matches("input:not([type=checkbox]), select, textarea")) return
    const off = kept("no-keys") && e.key !== "?"
    const link = goes && document.querySelector(`.nav--main a[href="${pages[e.key]}"]`)
    goes = e.key === "g" && !off
    if (off) return
    if (link) { e.preventDefault(); link.click() }
    else if (acts[e.key]) { e.preventDefault(); acts[e.key]() }
  })
  const keysOff = document.getElementById("keys-off")
  if (keysOff) {
    keysOff.checked = kept("no-keys")
    keysOff.addEventListener("change", () => keep("no-keys", keysOff.checked))
  }
  open()
})()
