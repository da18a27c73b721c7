// A pad to draw on. What is drawn goes to the kernel, what the kernel makes of it comes back.
const SIDE = 112; // pixels of the pad
const PEN = 11; // width of a stroke

function render({ model, el }) {
  el.innerHTML = `<div style="display: flex; gap: 1em; flex-wrap: wrap; align-items: start">
      <div>
        <canvas role="img" aria-label="A pad: draw a digit with the mouse" width="${SIDE}"
          height="${SIDE}" style="width: 168px; height: 168px; touch-action: none;
          cursor: crosshair; border: 1px solid grey"></canvas><br>
        <button type="button">Clear the pad</button>
      </div>
      <div aria-live="polite"></div>
    </div>`;
  const pad = el.querySelector("canvas");
  const answer = el.querySelector("[aria-live]");
  const pen = pad.getContext("2d");
  pen.strokeStyle = "white";
  pen.lineWidth = PEN;
  pen.lineCap = "round";

  const send = () => {
    model.set("ink", pad.toDataURL()); // a PNG; of bytes the model would not see that they changed
    model.save_changes(); // while the kernel is busy only the latest is kept
  };
  const clear = () => {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, SIDE, SIDE);
  };

  let last = null;
  const stroke = (event) => {
    const scale = SIDE / pad.clientWidth;
    const here = [event.offsetX * scale, event.offsetY * scale];
    pen.beginPath();
    pen.moveTo(...(last ?? here));
    pen.lineTo(...here);
    pen.stroke();
    last = here;
    send();
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => last && stroke(event));
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, () => (last = null));
  }
  el.querySelector("button").addEventListener("click", () => {
    clear();
    send();
  });

  const show = () => (answer.innerHTML = model.get("picture"));
  model.on("change:picture", show);
  clear();
  show();
}

export default { render };
