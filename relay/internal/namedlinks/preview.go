package namedlinks

import (
	"net/http"
	"strings"
)

// bots are parts of the user agents with which chats, mailers and search engines
// look at links that people sent, in lower case.
var bots = []string{
	"slackbot", "slack-imgproxy", "twitterbot", "facebookexternalhit", "facebot", "discordbot", "telegrambot", "whatsapp", "linkedinbot",
	"googlebot", "google-inspectiontool", "googleother", "google-pagerenderer", "bingbot", "bingpreview", "applebot", "duckduckbot", "yandexbot",
	"baiduspider", "pinterestbot", "redditbot", "mastodon", "mattermost", "rocket.chat", "skypeuripreview", "microsoftpreview", "teamsbot",
	"viber", "vkshare", "embedly", "iframely", "outbrain", "quora link preview", "snapchat", "signal-desktop", "bluesky cardyb", "zoombot", "synapse",
	"notionembedder", "trello", "ahrefsbot", "semrushbot", "petalbot", "gptbot", "claudebot", "ccbot", "bytespider", "headlesschrome/preview",
}

// Preview says whether nobody looks at the answer as a viewer would: a HEAD, or a GET
// by a known bot or by a browser that fetches ahead of its user. What changes
// something, or asks for a connection, is no preview, whatever it calls itself.
func Preview(r *http.Request) bool {
	switch {
	case len(r.Header["Upgrade"]) > 0:
		return false
	case r.Method == http.MethodHead:
		return true
	case r.Method != http.MethodGet:
		return false
	case Prefetch(r):
		return true
	}
	agent := strings.ToLower(r.UserAgent())
	for _, b := range bots {
		if strings.Contains(agent, b) {
			return true
		}
	}
	return false
}

// Prefetch says whether a browser asks ahead of its user, who may come or not.
func Prefetch(r *http.Request) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		v := strings.ToLower(r.Header.Get(name))
		if strings.HasPrefix(v, "prefetch") || strings.HasPrefix(v, "preview") || strings.HasPrefix(v, "prerender") {
			return true
		}
	}
	return false
}
