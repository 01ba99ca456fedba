// Package store owns Adit's durable state: the records of agents, tunnels,
// credentials, presences and relays in etcd, embedded or external, through one
// code path, and a watch-fed copy of them in memory. It is the only package that
// imports etcd. It never decides: the rules are the gate's and the callers'.
package store
