export PATH=/usr/sbin:/usr/bin HOME=/root
export PS1='\u@\h:\w\$ '
