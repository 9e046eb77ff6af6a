// Search on pages that were opened from the file system, where browsers refuse to start the worker that the theme's search
// runs in. There the worker's script runs in a hidden frame of the same page, with the same messages in both directions.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      this.waiting = []; // messages that arrive before the script has been read
      this.frame = frame;
      frame.addEventListener("load", () => this.start(script), { once: true });
      document.body.append(frame);
    }

    start(script) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.receive(data); // what the script says is said to this page
      inside.importScripts = () => Promise.resolve();
      const element = inside.document.createElement("script");
      element.src = script;
      element.addEventListener("load", () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.deliver(data));
      });
      inside.document.head.append(element);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.deliver(data);
    }

    deliver(data) {
      const inside = this.frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }

    receive(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
  };
}
