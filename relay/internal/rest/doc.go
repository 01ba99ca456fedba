// Package rest owns the HTTP interface under /api/v1: one table of routes, one
// place that authenticates, one that turns errors into problem documents, and the
// OpenAPI description of it all. It decides nothing about tunnels and tasks (the
// gate does) and carries no tunnel's bytes.
//
// Checks come in one order everywhere, so that nothing leaks: who is calling, what
// kinds of caller the route admits, whether the team has the thing named, and only
// then what is wrong with the request.
package rest
