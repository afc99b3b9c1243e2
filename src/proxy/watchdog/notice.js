// What the page shows while its connection is lost: nothing yet.

const notice = { lost() {}, resumed() {}, ended() {}, unsent() {} };
