/*
 * Browsers start no worker in a page that was opened from disk, and the search is one.
 * There, and only there, this runs a worker's script in a hidden frame instead.
 */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      const answer = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.waiting = []
      this.inside = inside
      inside.postMessage = data => answer(data)
      const script = inside.document.createElement("script")
      script.src = url
      script.onload = () => {
        this.ready = true
        this.waiting.splice(0).forEach(data => this.postMessage(data))
      }
      inside.document.body.appendChild(script)
    }

    postMessage(data) {
      if (this.ready) {
        this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
      } else {
        this.waiting.push(data)
      }
    }

    terminate() {
      this.inside.frameElement.remove()
    }
  }
}
