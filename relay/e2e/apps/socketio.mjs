// A socket.io chat server as its documentation has it, without options made for
// a proxy: the client library is served by the server itself.
import { createServer } from "node:http";
import { Server } from "socket.io";

const page = `<!doctype html><title>chat</title><p id="state">connecting</p>
<script src="/socket.io/socket.io.js"></script>
<script>
const socket = io();
socket.on("connect", () => { socket.emit("echo", "hello over the tunnel", (answer) => {
  document.getElementById("state").textContent = answer;
}); });
socket.io.engine.on("upgrade", () => { document.title = "upgraded to " + socket.io.engine.transport.name; });
</script>`;

const http = createServer((req, res) => {
  res.setHeader("Content-Type", "text/html");
  res.end(page);
});
const io = new Server(http);
io.on("connection", (socket) => {
  socket.on("echo", (text, answer) => answer("echo: " + text));
});
http.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("listening"));
