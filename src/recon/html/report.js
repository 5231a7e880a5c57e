"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("cloud");
  const hint = document.getElementById("hint");
  const gl = canvas.getContext("webgl", { antialias: true, alpha: true, preserveDrawingBuffer: true });
  if (!gl) {
    hint.textContent = "This browser has no WebGL, which the point cloud needs.";
    return;
  }

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // One program draws points and lines: positions are 16-bit steps of the box of their cloud.
  const program = gl.createProgram();
  const shader = (kind, source) => {
    const s = gl.createShader(kind);
    gl.shaderSource(s, source);
    gl.compileShader(s);
    if (!gl.getShaderParameter(s, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(s));
    gl.attachShader(program, s);
  };
  shader(gl.VERTEX_SHADER, `
    attribute vec3 position; attribute vec3 color;
    uniform vec3 low, step, target; uniform mat3 turn; uniform vec2 focal, shift; uniform float away, size, near, far;
    varying vec3 tint;
    void main() {
      vec3 p = turn * (low + step * position - target);
      float z = p.z + away;
      gl_Position = vec4(focal.x * (p.x + shift.x), -focal.y * (p.y + shift.y), (z * (far + near) - 2.0 * far * near) / (far - near), z);
      gl_PointSize = clamp(size * focal.y / max(z, near), 1.0, 24.0);
      tint = color;
    }`);
  shader(gl.FRAGMENT_SHADER, `
    precision mediump float; varying vec3 tint; uniform float round;
    void main() {
      vec2 d = gl_PointCoord - 0.5;
      if (round > 0.5 && dot(d, d) > 0.25) discard;
      gl_FragColor = vec4(tint, 1.0);
    }`);
  gl.linkProgram(program);
  gl.useProgram(program);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const at = Object.fromEntries(
    ["low", "step", "target", "turn", "focal", "shift", "away", "size", "near", "far", "round"].map((n) => [n, uniform(n)]));
  const [positionSlot, colorSlot] = ["position", "color"].map((n) => gl.getAttribLocation(program, n));
  gl.enableVertexAttribArray(positionSlot);
  gl.enableVertexAttribArray(colorSlot);

  const buffer = (content) => {
    const b = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, b);
    gl.bufferData(gl.ARRAY_BUFFER, content, gl.STATIC_DRAW);
    return b;
  };
  const clouds = data.clouds.map((cloud) => {
    const edges = [0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1];
    const lines = cloud.frusta.flatMap((f) => edges.flatMap((i) => f[i]));
    const tints = cloud.frusta.flatMap((_, n) => edges.flatMap(() => (n === 0 ? [244, 63, 94] : [249, 115, 22])));
    return {
      ...cloud,
      position: buffer(bytes(cloud.positions)),
      color: buffer(bytes(cloud.colors)),
      lines: buffer(new Float32Array(lines)),
      tints: buffer(new Uint8Array(tints)),
      lineCount: lines.length / 3,
    };
  });

  const start = () => ({ yaw: -0.2, pitch: 0.24, away: data.home.away, shift: [0, 0] });
  let view = start();
  let shown = 0;
  let spinning = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const sizeInput = document.getElementById("size");
  const camerasInput = document.getElementById("cameras");

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    gl.viewport(0, 0, w, h);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    const cloud = clouds[shown];
    if (!cloud) return;
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    // First about the vertical axis, then about the horizontal one; columns one after the other.
    gl.uniformMatrix3fv(at.turn, false, [cy, sp * sy, -cp * sy, 0, cp, sp, sy, -sp * cy, cp * cy]);
    const focal = 1.7;
    gl.uniform2f(at.focal, (focal * h) / w, focal);
    gl.uniform2fv(at.shift, view.shift);
    gl.uniform3fv(at.target, data.home.target);
    gl.uniform1f(at.away, view.away);
    gl.uniform1f(at.near, view.away * 0.02);
    gl.uniform1f(at.far, view.away * 20);
    gl.uniform1f(at.size, (sizeInput.value * data.home.away * h) / 900);
    const part = (position, kind, color, count, mode) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, position);
      gl.vertexAttribPointer(positionSlot, 3, kind, false, 0, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, color);
      gl.vertexAttribPointer(colorSlot, 3, gl.UNSIGNED_BYTE, true, 0, 0);
      gl.uniform1f(at.round, mode === gl.POINTS ? 1 : 0);
      gl.drawArrays(mode, 0, count);
    };
    gl.uniform3fv(at.low, cloud.low);
    gl.uniform3fv(at.step, cloud.step);
    part(cloud.position, gl.UNSIGNED_SHORT, cloud.color, cloud.count, gl.POINTS);
    if (camerasInput.checked) {
      gl.uniform3f(at.low, 0, 0, 0);
      gl.uniform3f(at.step, 1, 1, 1);
      part(cloud.lines, gl.FLOAT, cloud.tints, cloud.lineCount, gl.LINES);
    }
  }

  let asked = false;
  const redraw = () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame((time) => {
        asked = false;
        if (spinning) view.yaw = -0.2 + 0.2 * Math.sin(time / 4000);
        draw();
        if (spinning) redraw();
      });
    }
  };
  const still = () => { spinning = false; };

  const held = new Map();
  let spread = 0;
  canvas.addEventListener("pointerdown", (e) => {
    still();
    canvas.setPointerCapture(e.pointerId);
    held.set(e.pointerId, [e.clientX, e.clientY]);
    spread = 0;
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (e) => { held.delete(e.pointerId); spread = 0; });
  }
  canvas.addEventListener("pointermove", (e) => {
    const last = held.get(e.pointerId);
    if (!last) return;
    const [dx, dy] = [e.clientX - last[0], e.clientY - last[1]];
    held.set(e.pointerId, [e.clientX, e.clientY]);
    if (held.size === 2) {
      const [a, b] = [...held.values()];
      const now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoom(spread / now);
      spread = now;
    } else if (e.buttons & 2 || e.shiftKey) {
      const unit = view.away / 1.7 / (canvas.clientHeight / 2);
      view.shift = [view.shift[0] + dx * unit, view.shift[1] + dy * unit];
    } else {
      view.yaw -= dx * 0.006;
      view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + dy * 0.006));
    }
    redraw();
  });
  const zoom = (factor) => {
    view.away = Math.max(data.home.away * 0.08, Math.min(data.home.away * 6, view.away * factor));
    redraw();
  };
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); still(); zoom(Math.exp(e.deltaY * 0.0012)); }, { passive: false });
  canvas.addEventListener("contextmenu", (e) => e.preventDefault());
  const turn = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
  canvas.addEventListener("keydown", (e) => {
    if (!turn[e.key]) return;
    e.preventDefault();
    still();
    view.yaw += turn[e.key][0];
    view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + turn[e.key][1]));
    redraw();
  });

  const tabs = document.getElementById("tabs");
  clouds.forEach((cloud, n) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.role = "tab";
    tab.textContent = cloud.name;
    tab.title = cloud.count.toLocaleString("en") + " points";
    tab.setAttribute("aria-selected", n === shown);
    tab.addEventListener("click", () => {
      shown = n;
      [...tabs.children].forEach((t, i) => t.setAttribute("aria-selected", i === n));
      redraw();
    });
    tabs.append(tab);
  });
  sizeInput.addEventListener("input", redraw);
  camerasInput.addEventListener("change", redraw);
  document.getElementById("reset").addEventListener("click", () => { still(); view = start(); redraw(); });
  window.addEventListener("resize", redraw);
  draw();
  redraw();
})();
