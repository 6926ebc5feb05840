(() => {
  const view = document.getElementById("view"), stage = document.getElementById("stage");
  const text = document.querySelector("#bar span");
  let scale = 1, x = 0, y = 0, shown = null, at = null;

  const place = () => {
    shown.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    stage.style.setProperty("--zoom", scale); // lines stay as thin as they are
  };
  const fit = () => { scale = 1; x = y = 0; place(); };
  const zoom = (factor, px, py) => {
    const next = Math.min(40, Math.max(1, scale * factor));
    x = px - (px - x) * next / scale;
    y = py - (py - y) * next / scale;
    scale = next;
    if (scale === 1) { x = y = 0; }
    place();
  };
  const middle = (factor) => zoom(factor, stage.clientWidth / 2, stage.clientHeight / 2);

  const open = (button) => {
    shown = button.firstElementChild.cloneNode(true);
    text.textContent = button.getAttribute("aria-label").replace("Enlarge: ", "");
    stage.replaceChildren(shown);
    view.showModal();
    fit();
  };
  for (const button of document.querySelectorAll("button.zoom")) {
    button.addEventListener("click", () => open(button));
  }
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => { at = event; stage.setPointerCapture(event.pointerId); });
  stage.addEventListener("pointermove", (event) => {
    if (!at) return;
    x += event.clientX - at.clientX;
    y += event.clientY - at.clientY;
    at = event;
    place();
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { at = null; });
  view.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") middle(1.4);
    if (event.key === "-") middle(1 / 1.4);
    if (event.key === "0") fit();
  });
  document.getElementById("closer").addEventListener("click", () => middle(1.4));
  document.getElementById("farther").addEventListener("click", () => middle(1 / 1.4));
  document.getElementById("whole").addEventListener("click", fit);
  document.getElementById("close").addEventListener("click", () => view.close());

  for (const box of document.querySelectorAll(".show input")) {
    const act = () => document.documentElement.classList.toggle(`no-${box.value}`, !box.checked);
    box.addEventListener("change", act);
    act();
  }
})();
